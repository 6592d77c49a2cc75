// The packages as they would be published.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

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
