// An auth server as a process of its own, for tests with several: node auth-process.js '{"database": …, "usage": …}'
//
// Listens on a free port until its standard input ends. Its first output line is the port; each further one is a callback.

import { createServer } from "node:http";
import { toNodeHandler } from "better-auth/node";
import { Pool } from "pg";
import { makeAuth } from "./support.js";

const { database, usage } = JSON.parse(process.argv[2]);
const print = (value) => console.log(JSON.stringify(value));
const pool = new Pool(database);
const auth = makeAuth(
  {
    ...usage,
    onUsageWarning: ({ percentage }) => print({ name: "warning", percentage }),
    onLimitExceeded: () => print({ name: "exceeded" }),
  },
  { database: pool },
);
const server = createServer(toNodeHandler(auth));
server.listen(0, "127.0.0.1", () => print(server.address().port));

process.stdin.resume();
process.stdin.on("end", () => process.exit());
