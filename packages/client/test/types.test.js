import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";

import { compileSnippets } from "tallyman-testing/snippets";

const folder = fileURLToPath(new URL("./", import.meta.url));

test("what must compile does, and what must not does not", async () => {
  const flags = "--strict --noEmit --target es2022 --module nodenext --lib es2022,dom,dom.iterable --types node types.ts".split(" ");
  const tsc = fileURLToPath(import.meta.resolve("typescript/bin/tsc"));
  await promisify(execFile)(process.execPath, [tsc, ...flags], { cwd: folder }).catch(({ stdout }) => assert.fail(stdout));
});

test("the snippets of the README compile", async () => {
  const globals = 'declare const tallyman: import("@tallyman/client").Tallyman';
  const { blocks, errors } = await compileSnippets(new URL("../README.md", import.meta.url), globals);
  assert.deepEqual(errors, []);
  assert.ok(blocks > 5);
});

test("a snippet that does not compile is reported with its line", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "snippets-"));
  t.after(() => rm(directory, { recursive: true }));
  const file = join(directory, "README.md");
  await writeFile(file, "# Title\n\n```ts\nconst a = 1;\n```\n\n```tsx\n\nconst a: string = 1;\n```\n\n```js\nnot(compiled\n```\n");
  const { blocks, errors } = await compileSnippets(pathToFileURL(file));
  assert.equal(blocks, 2);
  assert.deepEqual(errors.filter((error) => !error.includes("type definition file")), [
    "README.md:9: Type 'number' is not assignable to type 'string'.",
  ]);
});
