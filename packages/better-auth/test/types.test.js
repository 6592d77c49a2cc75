// What users write compiles under --strict.

import assert from "node:assert/strict";
import { test } from "node:test";
import { compileSnippets } from "tallyman-testing/snippets";

test("the README's snippets compile under --strict", async () => {
  const { blocks, errors } = await compileSnippets(new URL("../README.md", import.meta.url));
  assert.deepEqual(errors, []);
  assert.ok(blocks >= 5, `${blocks} blocks`);
});

test("the endpoints, the error codes and the types are inferred, and mistakes are not accepted", async () => {
  const { errors } = await compileSnippets(new URL("types.md", import.meta.url));
  assert.deepEqual(errors, []);
});
