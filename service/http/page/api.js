/**
 * Requests to the service that serves this page, and its errors.
 *
 * Every address is relative to the page, so that it works below any path that a proxy puts it under. The API key is
 * kept in the tab's session storage; where a browser forbids that, for as long as the page is open.
 */

const KEY = "dat-serve.api-key";
/** Statuses after which the same request may well succeed. */
const PASSING = new Set([0, 408, 429, 502, 503, 504]);

let key = storage()?.getItem(KEY) ?? null;

function storage() {
  try {
    return window.sessionStorage;
  } catch {
    return null; // forbidden by the browser's settings
  }
}

export function hasKey() {
  return key !== null;
}

/** Use an API key from now on, or none where it is null. */
export function useKey(given) {
  key = given;
  if (given === null) storage()?.removeItem(KEY);
  else storage()?.setItem(KEY, given);
}

/** An answer that is not the one asked for, in the words of its problem document (RFC 9457). */
export class Problem extends Error {
  constructor({ status = 0, title, detail = "", code = "", request_id = "", errors = [] }, retryAfterS = null) {
    super(detail || title);
    this.name = "Problem";
    this.status = status;
    this.title = title;
    this.detail = detail;
    this.code = code;
    this.requestId = request_id;
    this.errors = errors ?? [];
    this.retryAfterS = retryAfterS;
  }

  get isPassing() {
    return PASSING.has(this.status);
  }
}

/** Return the whole address of a path, such as `v1/classify`, with its query parameters. */
export function address(path, parameters = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  return url.href;
}

/** GET a path's JSON; throws Problem. */
export function get(path) {
  return ask(address(path), {});
}

/** POST an image to a path and return the JSON; throws Problem, or AbortError when `signal` aborts. */
export function post(path, parameters, image, signal) {
  return ask(address(path, parameters), {
    method: "POST",
    headers: { "Content-Type": image.type },
    body: image.blob,
    signal,
  });
}

async function ask(url, { headers = {}, ...options }) {
  const credentials = key === null ? {} : { Authorization: `Bearer ${key}` };
  let response;
  try {
    response = await fetch(url, { ...options, headers: { Accept: "application/json", ...headers, ...credentials } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      title: "No answer",
      detail: "The server could not be reached, or the connection broke off before its answer.",
      code: "unreachable",
    });
  }
  if (response.ok) return response.json();
  throw await problemOf(response);
}

async function problemOf(response) {
  const retryAfterS = Number.parseInt(response.headers.get("Retry-After"), 10);
  const isOurs = response.headers.get("Content-Type")?.startsWith("application/problem+json");
  const told = isOurs
    ? await response.json()
    : {
        status: response.status,
        title: `${response.status} ${response.statusText}`.trim(),
        detail: "Something between this page and the service answered in its place.",
        request_id: response.headers.get("X-Request-ID") ?? "",
      };
  return new Problem(told, Number.isNaN(retryAfterS) ? null : retryAfterS);
}
