// Reads server-sent events off a fetch response, after the parsing rules of the HTML standard (section 9.2.6).
// Knows nothing of chat: it yields the text of each event's data.

const LARGEST_EVENT = 1 << 20; // characters; a server that never ends a line must not fill the tab's memory

/** Yields the data of every event in a stream of bytes, as soon as it is complete. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  let size = 0;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // an event without its closing blank line is no event
      rest += value;
      // A carriage return at the very end may be half of a CRLF: it waits for the next piece.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      if (rest.length > LARGEST_EVENT) throw new Error("The server sent a line without an end.");
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
          size = 0;
          continue;
        }
        const colon = line.indexOf(":");
        const field = colon < 0 ? line : line.slice(0, colon);
        if (field !== "data") continue; // comments (an empty field name), event, id and retry
        const text = colon < 0 ? "" : line.slice(colon + 1);
        data.push(text.startsWith(" ") ? text.slice(1) : text);
        size += text.length;
        if (size > LARGEST_EVENT) throw new Error("The server sent an event without an end.");
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined); // already broken or aborted: there is nothing left to close
  }
}
