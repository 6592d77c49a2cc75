// The oldest Better Auth that is supported: the same tests, with `better-auth` resolved to it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const HOOKS = `export const resolve = (specifier, context, next) =>
  next(specifier.replace(/^better-auth(?=\\/|$)/, "better-auth-1.5"), context);`;
const REGISTER = `import { register } from "node:module"; register(${JSON.stringify(dataUrl(HOOKS))});`;

function dataUrl(module) {
  return `data:text/javascript,${encodeURIComponent(module)}`;
}

const { NODE_TEST_CONTEXT: _, ...env } = process.env;

/** Runs Node with the old version; returns the exit code and everything that it printed. */
async function runWithOldVersion(...args) {
  const child = spawn(process.execPath, ["--import", dataUrl(REGISTER), ...args], { env, cwd: fileURLToPath(new URL(".", import.meta.url)) });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (output += data));
  const [code] = await once(child, "close");
  return { code, output };
}

test("the tests below run with Better Auth 1.5", async () => {
  const program = `import { betterAuth } from "better-auth"; console.log((await betterAuth({ secret: "for tests, known to everybody 1" }).$context).version)`;
  const { output } = await runWithOldVersion("--input-type=module", "--eval", program);
  assert.match(output, /^1\.5\./m);
});

for (const file of ["counting.test.js", "endpoints.test.js", "callbacks.test.js", "async.test.js"]) {
  test(`${file} passes with Better Auth 1.5`, async () => {
    const { code, output } = await runWithOldVersion("--test", file);
    assert.equal(code, 0, output);
    assert.match(output, /^# pass [1-9]/m);
  });
}
