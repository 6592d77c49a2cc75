// A Tallyman of a test's own: `tallyman dev` on a free port, with a data directory that is deleted afterwards.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const TARGET = process.env.CARGO_TARGET_DIR ?? join(ROOT, "target");
/** The executable that `cargo test` has built, or another. */
export const EXECUTABLE = process.env.TALLYMAN_EXECUTABLE ?? join(TARGET, "debug/tallyman");

/** Becomes a program that is stopped when standard input ends: with the test's process, however that ends. */
const WATCHED = 'exec 3<&0; { read -r _ <&3; kill $$; } >/dev/null 2>&1 & exec "$@" </dev/null 3<&-';

/**
 * Starts a Tallyman with settings in addition to the defaults of `tallyman dev`.
 *
 * @param {Record<string, string>} settings environment variables, such as `TALLYMAN_DEFAULT_LIMIT`
 */
export async function startTallyman(settings = {}) {
  const directory = await mkdtemp(join(tmpdir(), "tallyman-test-"));
  const tallyman = new Tallyman(directory, settings);
  try {
    await tallyman.start();
  } catch (error) {
    await rm(directory, { recursive: true, force: true });
    throw error;
  }
  return tallyman;
}

export class Tallyman {
  /** Stays the same over restarts. */
  url = "";
  /** The admin key. */
  key = "";
  #process;
  #address = "127.0.0.1:0";

  constructor(directory, settings) {
    this.directory = directory;
    this.settings = settings;
  }

  /** Starts the service, again at the same address and with the same data if it was stopped. */
  async start() {
    const args = ["dev", "--data-dir", this.directory, "--listen", this.#address];
    const child = spawn("sh", ["-c", WATCHED, "sh", EXECUTABLE, ...args], {
      // The servers that scripts/setup installs are looked for below it.
      cwd: ROOT,
      env: { ...process.env, ...this.settings },
      stdio: ["pipe", "pipe", "pipe"],
    });
    child.once("exit", () => child.stdin.destroy());
    this.#process = child;
    const log = [];
    createInterface({ input: child.stderr }).on("line", (line) => log.push(line));
    const failed = Promise.race([
      once(child, "error").then(([error]) => Promise.reject(error)),
      once(child, "exit").then(() => Promise.reject(new Error(`tallyman dev ended:\n${log.join("\n")}`))),
    ]);
    failed.catch(() => {});
    const output = createInterface({ input: child.stdout });
    const announced = new Promise((resolve) => {
      output.on("line", (line) => {
        const address = /counts at\s+http:\/\/(\S+)/.exec(line)?.[1];
        if (address) resolve(address);
      });
    });
    this.#address = await Promise.race([announced, failed]);
    this.url = `http://${this.#address}`;
    this.key = (await readFile(join(this.directory, "admin-key"), "utf8")).trim();
    await Promise.race([this.#ready(), failed]);
  }

  /** Of the service; Redis and Postgres are its children. */
  get pid() {
    return this.#process.pid;
  }

  /** Stops the service in an orderly way; its data stays. */
  async stop() {
    const child = this.#process;
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, "exit");
    child.kill("SIGTERM");
    await exited;
  }

  /** Stops the service and deletes its data. */
  async remove() {
    await this.stop();
    await rm(this.directory, { recursive: true, force: true });
  }

  /** Calls the HTTP API with the admin key; returns the status and the decoded body. */
  async api(method, path, body) {
    const response = await fetch(this.url + path, {
      method,
      headers: { authorization: `Bearer ${this.key}`, "content-type": "application/json" },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    return { status: response.status, body: text ? JSON.parse(text) : null };
  }

  /** Polls until `/readyz` is 200. */
  async #ready() {
    for (;;) {
      const ready = await fetch(`${this.url}/readyz`).catch(() => null);
      if (ready?.ok) return;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}
