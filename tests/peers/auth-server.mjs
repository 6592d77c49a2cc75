// Better Auth with its jwt and organization plugins, set up as next to Tallyman.
//
// Listens on a free port until its standard input ends. Its first output line is JSON with its URLs, the signed-up users
// and a token for each algorithm. POST /rotate creates a signing key and responds with a token signed with it.

import { createServer } from "node:http";
import { once } from "node:events";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { toNodeHandler } from "better-auth/node";
import { admin, createJwk, jwt, organization } from "better-auth/plugins";

const AUDIENCE = "tallyman";

const server = createServer();
server.listen(0, "127.0.0.1");
await once(server, "listening");
const url = `http://127.0.0.1:${server.address().port}`;

const database = { user: [], session: [], account: [], verification: [], jwks: [], organization: [], member: [], invitation: [] };

/** An auth server; all share the database and differ in the signing algorithm. */
const authServer = (alg) =>
  betterAuth({
    baseURL: url,
    secret: "a secret for tests, known to everybody",
    database: memoryAdapter(database),
    emailAndPassword: { enabled: true },
    telemetry: { enabled: false },
    logger: { level: "error" },
    rateLimit: { enabled: false },
    plugins: [
      admin(),
      organization(),
      jwt({
        jwks: { keyPairConfig: { alg } },
        jwt: {
          issuer: url,
          audience: AUDIENCE,
          definePayload: ({ user, session }) => ({
            organizationId: session.activeOrganizationId,
            role: user.role,
          }),
        },
      }),
    ],
  });

const algorithms = ["EdDSA", "ES256", "RS256"];
const servers = Object.fromEntries(algorithms.map((alg) => [alg, authServer(alg)]));
const auth = servers.EdDSA;
const makeKey = async (alg) =>
  createJwk({ context: await auth.$context }, { jwks: { keyPairConfig: { alg } } });
for (const alg of algorithms) await makeKey(alg);

const handler = toNodeHandler(auth);
server.on("request", async (request, response) => {
  if (request.url !== "/rotate") return handler(request, response);
  await makeKey("EdDSA");
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ token: await token("EdDSA", users.member) }));
});

/** Signs a user up; returns the user's id and the session cookie. */
async function signUp(name) {
  const { headers, response } = await auth.api.signUpEmail({
    body: { name, email: `${name}@example.com`, password: "correct horse battery" },
    returnHeaders: true,
  });
  const cookie = headers.getSetCookie().map((it) => it.split(";")[0]).join("; ");
  return { id: response.user.id, headers: new Headers({ cookie }) };
}

async function token(alg, user) {
  const { token } = await servers[alg].api.getToken({ headers: user.headers });
  return token;
}

const users = { member: await signUp("member"), admin: await signUp("admin"), outsider: await signUp("outsider") };
database.user.find((user) => user.id === users.admin.id).role = "admin";
const { id: organizationId } = await auth.api.createOrganization({
  body: { name: "Acme", slug: "acme" },
  headers: users.member.headers,
});

const tokens = {};
for (const alg of algorithms) tokens[alg] = await token(alg, users.member);
console.log(
  JSON.stringify({
    url,
    jwksUrl: `${url}/api/auth/jwks`,
    issuer: url,
    audience: AUDIENCE,
    organizationId,
    userId: users.member.id,
    tokens,
    adminId: users.admin.id,
    adminToken: await token("EdDSA", users.admin),
    outsiderToken: await token("EdDSA", users.outsider),
  }),
);

process.stdin.resume();
process.stdin.on("end", () => process.exit());
