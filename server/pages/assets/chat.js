// One question to /v1/chat/completions and the answer as it streams in, with the times that a person feels.
// Knows nothing of the page.

import { Problem, call, errorWords } from "./api.js";
import { events } from "./sse.js";

/** The request body for a conversation. `settings` holds only what the person set; the rest is the server's choice. */
export function chatBody(model, turns, settings) {
  const messages = turns.map((turn) => {
    if (turn.role === "assistant" || !turn.pictures.length) return { role: turn.role, content: turn.text };
    const pictures = turn.pictures.map((picture) => ({ type: "image_url", image_url: { url: picture.url } }));
    return { role: turn.role, content: [...pictures, { type: "text", text: turn.text }] };
  });
  return { model, messages, ...settings, stream: true, stream_options: { include_usage: true } };
}

/** What is known of an answer so far. Times are milliseconds since the request was sent. */
export class Answer {
  constructor() {
    this.text = "";
    this.arrivals = []; // one for each piece of text
    this.elapsed = 0;
    this.usage = null;
    this.version = null;
    this.requestId = null;
    this.finish = null; // stop | length | ... as the server says, or "stopped" by the person
  }

  get firstToken() {
    return this.arrivals.length ? this.arrivals[0] : null;
  }

  /** Tokens a second after the first one, from the server's count; from the pieces seen while it still streams. */
  get tokensPerSecond() {
    const seconds = (this.arrivals.at(-1) - this.firstToken) / 1000;
    const tokens = (this.usage?.completion_tokens ?? this.arrivals.length) - 1;
    return tokens > 0 && seconds > 0 ? tokens / seconds : null;
  }
}

function take(answer, chunk, now) {
  if (chunk.error) throw new Problem(500, errorWords(chunk) ?? "It broke off without a reason.", answer);
  answer.version = chunk.system_fingerprint ?? answer.version;
  answer.requestId ??= chunk.id ?? null;
  answer.usage = chunk.usage ?? answer.usage;
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) {
    answer.text += choice.delta.content;
    answer.arrivals.push(now);
  }
  answer.finish = choice?.finish_reason ?? answer.finish;
}

/** Sends `body` and fills `answer`, calling `changed` after each piece. An abort ends it without an error. */
export async function ask(body, answer, { key, signal, changed }) {
  const began = performance.now();
  const elapsed = () => (answer.elapsed = performance.now() - began);
  try {
    const response = await call("/v1/chat/completions", { key, body, signal });
    answer.requestId = response.headers.get("x-request-id");
    let done = false;
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        done = true;
        break;
      }
      take(answer, JSON.parse(data), elapsed());
      changed();
    }
    if (!done) throw new Problem(502, "The answer broke off before its end.", answer);
  } catch (error) {
    if (signal.aborted) answer.finish = "stopped";
    else if (error instanceof Problem) throw error;
    else if (error instanceof SyntaxError) throw new Problem(502, "The answer could not be read: it is not JSON.", answer);
    else throw new Problem(502, "The connection was lost in the middle of the answer.", answer);
  } finally {
    elapsed();
  }
}
