// Calls the server and turns what goes wrong into words. Keys stay in this tab: sessionStorage, never in a link.

const TITLES = {
  0: "The server cannot be reached",
  400: "The server refused this request",
  401: "A key is needed",
  403: "This key may not do that",
  404: "Not found",
  408: "The request took too long",
  413: "Too large",
  415: "This kind of file is not accepted",
  429: "The server is busy",
  500: "The server failed",
  502: "The worker failed",
  503: "No worker is ready",
  504: "No answer in time",
};

/** What went wrong: `message` is a short title, `detail` the server's own words, `status` 0 when nothing answered. */
export class Problem extends Error {
  constructor(status, detail, { requestId = null, retryAfter = null } = {}) {
    super(TITLES[status] ?? (status >= 500 ? TITLES[500] : TITLES[400]));
    this.status = status;
    this.detail = detail;
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }
}

/** A key kept for as long as this tab is open. */
export class TabKey {
  constructor(name) {
    this.name = name;
  }

  get value() {
    return sessionStorage.getItem(this.name) ?? "";
  }

  set value(text) {
    if (text) sessionStorage.setItem(this.name, text);
    else sessionStorage.removeItem(this.name);
  }
}

/** The words of an error body in OpenAI's format, or null. */
export function errorWords(body) {
  const error = body?.error;
  const words = typeof error === "string" ? error : error?.message;
  return typeof words === "string" && words ? words : null;
}

async function problemOf(response) {
  const text = await response.text();
  let words = null;
  try {
    words = errorWords(JSON.parse(text));
  } catch {
    words = text.length && text.length < 300 && !text.startsWith("<") ? text : null; // a proxy's page is not for reading
  }
  return new Problem(response.status, words ?? `It answered ${response.status} and gave no reason.`, {
    requestId: response.headers.get("x-request-id"),
    retryAfter: response.headers.get("retry-after"),
  });
}

/** A response with a good status; everything else is thrown as a Problem, and an abort as the browser's AbortError. */
export async function call(path, { key = "", body = null, signal = null } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== null) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === null ? "GET" : "POST",
      headers,
      body: body === null ? null : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error.name === "TimeoutError") throw new Problem(0, "It did not answer in time.");
    throw new Problem(0, "Nothing answers at this address. Is the controller running?");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}
