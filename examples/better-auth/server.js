// One process and one port for everything: the page, and the auth server below /api/auth.

import { fileURLToPath } from "node:url";
import { serve } from "@hono/node-server";
import { build } from "esbuild";
import { Hono } from "hono";
import { createAuth } from "./auth.js";

const port = Number(process.env.PORT ?? 3000);
const url = `http://localhost:${port}`;

const { outputFiles } = await build({
  entryPoints: [fileURLToPath(new URL("page/app.jsx", import.meta.url))],
  bundle: true,
  minify: true,
  write: false,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  outdir: "page",
  define: { "process.env.NODE_ENV": '"production"' },
});
const fileOf = (extension) => outputFiles.find(({ path }) => path.endsWith(extension)).text;

const page = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Reports</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/app.css">
<script type="module" src="/app.js"></script>
</head>
<body><div id="root"></div></body>
</html>`;

const auth = start(() => createAuth(url));
const app = new Hono();
app.on(["GET", "POST"], "/api/auth/*", ({ req }) => auth.handler(req.raw));
app.get("/app.js", (c) => c.body(fileOf(".js"), 200, { "content-type": "text/javascript; charset=utf-8" }));
app.get("/app.css", (c) => c.body(fileOf(".css"), 200, { "content-type": "text/css; charset=utf-8" }));
app.get("/", (c) => c.html(page));
serve({ fetch: app.fetch, port, hostname: "localhost" }, () => console.log(`The example is at ${url}`));

/** What is wrong with the settings is for people, who need no stack. */
function start(create) {
  try {
    return create();
  } catch (error) {
    console.error(error.message);
    process.exit(1);
  }
}
