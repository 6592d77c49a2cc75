// The packages as they would be published.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { createInterface } from "node:readline";
import { setImmediate } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { startTallyman } from "tallyman-testing/tallyman";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const PACKAGES = ["client", "better-auth"];
const run = promisify(execFile);
const tool = (name, ...args) => run(process.execPath, [join(ROOT, "node_modules", name), ...args], { cwd: ROOT });

let folder;
/** The path of each package's archive. */
const archives = {};

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "tallyman-packed-"));
  for (const name of PACKAGES) {
    const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", folder], {
      cwd: join(ROOT, "packages", name),
    });
    const [{ filename, size, files }] = Object.values(JSON.parse(stdout));
    archives[name] = join(folder, filename);
    console.log(`@tallyman/${name}: ${size} bytes packed, ${files.length} files`);
  }
});

after(() => rm(folder, { recursive: true, force: true }));

for (const name of PACKAGES) {
  test(`publint finds nothing in @tallyman/${name}`, async () => {
    const { stdout } = await tool("publint/src/cli.js", "run", archives[name], "--strict");
    assert.match(stdout, /All good!/);
  });

  test(`every entry of @tallyman/${name} resolves with its types`, async () => {
    const css = name === "better-auth" ? ["--exclude-entrypoints", "styles.css"] : [];
    await tool("@arethetypeswrong/cli/dist/index.js", archives[name], "--profile", "esm-only", ...css);
  });
}

/** Signs a user up, makes an organization active and lists the user's organizations three times; prints the statuses and the organization. */
const VISIT = `
import { auth } from "./auth.mjs";

let cookie = "";
async function call(path, body) {
  const headers = { cookie, origin: "http://localhost:3000", "content-type": "application/json" };
  const method = body ? "POST" : "GET";
  const response = await auth.handler(new Request("http://localhost:3000/api/auth" + path, { method, headers, ...(body && { body: JSON.stringify(body) }) }));
  const cookies = response.headers.getSetCookie().map((it) => it.split(";")[0]);
  if (cookies.length) cookie = cookies.join("; ");
  return response;
}

await call("/sign-up/email", { name: "Ada", email: "ada@example.com", password: "correct horse battery" });
const { id } = await (await call("/organization/create", { name: "Acme", slug: "acme" })).json();
// Without a database, Better Auth keeps the session in a cookie, which only this call renews.
await call("/organization/set-active", { organizationId: id });
const statuses = [];
for (let i = 0; i < 3; i++) statuses.push((await call("/organization/list")).status);
console.log(JSON.stringify({ id, statuses }));
process.stdin.resume();
process.stdin.on("end", () => process.exit());
`;

test("the quick start of the README counts a signed-in user's calls in an empty project", async (t) => {
  const tallyman = await startTallyman();
  t.after(() => tallyman.remove());
  const project = join(folder, "project");
  await mkdir(project);
  const npm = (...args) => run("npm", [...args, "--no-audit", "--no-fund", "--ignore-scripts"], { cwd: project });
  await npm("init", "--yes");
  const { version } = JSON.parse(await readFile(join(ROOT, "node_modules/better-auth/package.json"), "utf8"));
  await npm("install", ...Object.values(archives), `better-auth@${version}`);

  const readme = await readFile(join(ROOT, "packages/better-auth/README.md"), "utf8");
  const [, server] = /```ts\n(.*?)```/s.exec(readme);
  const reader = "  // Your database, providers and so on.\n";
  assert.ok(server.includes(reader), server);
  const ours = '  baseURL: "http://localhost:3000",\n  secret: "a secret for tests, known to everybody",\n  emailAndPassword: { enabled: true },\n  telemetry: { enabled: false },\n';
  await writeFile(join(project, "auth.mjs"), server.replace(reader, ours));
  await writeFile(join(project, "visit.mjs"), VISIT);
  const env = { ...process.env, TALLYMAN_URL: tallyman.url, TALLYMAN_API_KEY: tallyman.key };
  const visit = spawn(process.execPath, ["visit.mjs"], { cwd: project, env, stdio: ["pipe", "pipe", "inherit"] });
  t.after(() => visit.stdin.end());
  const [line] = await once(createInterface({ input: visit.stdout }), "line");
  const { id, statuses } = JSON.parse(line);

  assert.deepEqual(statuses, [200, 200, 200]);
  // A call that Tallyman answers too slowly is counted later.
  let api;
  do {
    await setImmediate();
    const { body } = await tallyman.api("GET", `/v1/organizations/${id}/usage`);
    api = body.meters?.api;
  } while ((api?.current ?? 0) < 3);
  assert.equal(api.current, 3);
  assert.equal(api.limit, 1000);
});
