// Compiles the TypeScript of a Markdown file, so that what a reader copies works.

import { readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import ts from "typescript";

const OPTIONS = {
  strict: true,
  noEmit: true,
  skipLibCheck: true,
  target: ts.ScriptTarget.ES2022,
  lib: ["lib.es2022.d.ts", "lib.dom.d.ts", "lib.dom.iterable.d.ts"],
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  jsx: ts.JsxEmit.ReactJSX,
  types: ["node"],
};

/**
 * Compiles each block of a Markdown file that is marked `ts` or `tsx` as a module of its own, in the folder of the file, as
 * `tsc --strict` would.
 *
 * @param {URL} url the Markdown file
 * @param {string} globals declarations that all blocks see, such as `declare const tallyman: import("@tallyman/client").Tallyman`
 * @param {object} options of the compiler, in addition to those of `--strict`
 * @returns {Promise<{ blocks: number, errors: string[] }>} how many there are, and what the compiler says, with the lines of the file
 */
export async function compileSnippets(url, globals = "", options = {}) {
  const file = fileURLToPath(url);
  const blocks = snippetsOf(await readFile(file, "utf8"));
  const sources = new Map(blocks.map(({ line, language, code }) => [join(dirname(file), `snippet-${line}.${language}`), `${code}\nexport {};`]));
  sources.set(join(dirname(file), "snippet-globals.d.ts"), globals);

  const compilerOptions = { ...OPTIONS, ...options };
  const host = ts.createCompilerHost(compilerOptions);
  const { fileExists, readFile: read, getSourceFile } = host;
  host.fileExists = (name) => sources.has(name) || fileExists(name);
  host.readFile = (name) => sources.get(name) ?? read(name);
  host.getSourceFile = (name, languageVersion, ...rest) =>
    sources.has(name) ? ts.createSourceFile(name, sources.get(name), languageVersion) : getSourceFile(name, languageVersion, ...rest);

  const program = ts.createProgram([...sources.keys()], compilerOptions, host);
  const errors = ts.getPreEmitDiagnostics(program).map(({ file: source, start, messageText }) => {
    const message = ts.flattenDiagnosticMessageText(messageText, "\n");
    const first = Number(/snippet-(\d+)/.exec(source?.fileName ?? "")?.[1] ?? 0);
    return `${basename(file)}:${first + (source?.getLineAndCharacterOfPosition(start).line ?? 0)}: ${message}`;
  });
  return { blocks: blocks.length, errors };
}

/** The blocks, each with the line on which its code begins. */
function snippetsOf(markdown) {
  const blocks = [];
  const fence = /^```(tsx?)\n([\s\S]*?)^```$/gm;
  for (const { index, 1: language, 2: code } of markdown.matchAll(fence)) {
    blocks.push({ line: markdown.slice(0, index).split("\n").length + 1, language, code });
  }
  return blocks;
}
