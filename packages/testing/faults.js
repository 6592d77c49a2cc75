// A `fetch` with faults, for tests of what happens when Tallyman is away.

/** Nothing listens: the request is not executed. */
export const refused = async () => {
  throw failed("ECONNREFUSED");
};

/** No response until the caller gives up; the request is not executed. */
export const hanging = (_send, { signal }) =>
  new Promise((_, reject) => {
    signal.throwIfAborted();
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });

/** The request is executed, and the connection breaks before its response arrives. */
export const lost = async (send) => {
  await (await send()).arrayBuffer();
  throw failed("ECONNRESET");
};

/**
 * The service responds that it cannot work; the request is not executed.
 *
 * @param {number} [retryAfter] seconds
 */
export const unavailable = (retryAfter) => async () =>
  Response.json(
    { type: "urn:tallyman:problem:overloaded", title: "Overloaded", status: 503, detail: "too much at once", code: "overloaded" },
    { status: 503, headers: retryAfter === undefined ? {} : { "retry-after": String(retryAfter) } },
  );

/** What a proxy in front of the service says. */
export const badGateway = async () => new Response("<h1>Bad Gateway</h1>", { status: 502, headers: { "content-type": "text/html" } });

/** No fault. */
export const passed = (send) => send();

/**
 * Requests wait until they are released, and are executed then.
 *
 * @returns a fault with `release()`
 */
export function held() {
  let release;
  const released = new Promise((resolve) => (release = resolve));
  return Object.assign(async (send) => (await released, send()), { release });
}

/**
 * A `fetch` that fails as a test chooses.
 *
 * `fetch.next(...faults)` are those of the next requests, one each; `fetch.fault` is that of all others. `fetch.requests` has what was
 * asked for, executed or not: `{ method, path, headers, body }`, with the body decoded.
 *
 * A fault is a function of `send`, which executes the request, and of the options of `fetch`; it returns a response or throws.
 */
export function faultyFetch(real = globalThis.fetch) {
  const queue = [];
  const faulty = async (url, init = {}) => {
    const { pathname, search } = new URL(url);
    faulty.requests.push({
      method: init.method ?? "GET",
      path: pathname + search,
      headers: Object.fromEntries(new Headers(init.headers)),
      body: init.body === undefined ? undefined : JSON.parse(init.body),
    });
    const fault = queue.shift() ?? faulty.fault;
    return fault(() => real(url, init), init);
  };
  return Object.assign(faulty, { requests: [], fault: passed, next: (...faults) => void queue.push(...faults) });
}

/** As Node's `fetch` fails. */
function failed(code) {
  return new TypeError("fetch failed", { cause: Object.assign(new Error(code), { code }) });
}
