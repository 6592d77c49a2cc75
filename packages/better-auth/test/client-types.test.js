// What users write with the client and the components compiles under --strict.

import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { compileSnippets } from "tallyman-testing/snippets";

const snippets = new URL("client-types.md", import.meta.url);

test("actions, atoms, hooks and components have the types that they should, and mistakes are not accepted", async () => {
  assert.deepEqual(await compileSnippets(snippets), { blocks: 1, errors: [] });
});

test("the same holds with the types of React 18, and with exactOptionalPropertyTypes", async () => {
  const types = fileURLToPath(new URL("../../testing/node_modules/@types/", import.meta.url));
  const paths = { react: [`${types}react`], "react/jsx-runtime": [`${types}react/jsx-runtime`] };
  const { errors } = await compileSnippets(snippets, "", { paths, exactOptionalPropertyTypes: true });
  assert.deepEqual(errors, []);
});
