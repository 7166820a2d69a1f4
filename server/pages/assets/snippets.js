// The last request as text that a person can run elsewhere. Keys are named, never written out.

/** A shell command. The body goes in on standard input, since pictures are longer than a shell's arguments may be. */
export function asCurl(origin, body, withKey) {
  const key = withKey ? " \\\n  -H \"Authorization: Bearer $TEPHRA_API_KEY\"" : "";
  return `curl -sN ${origin}/v1/chat/completions \\\n  -H "Content-Type: application/json"${key} \\\n  --data-binary @- <<'JSON'\n${JSON.stringify(body)}\nJSON\n`;
}

function literal(value, indent) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value); // JSON's numbers and strings are Python's too
  const inner = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((item) => `${inner}${literal(item, inner)},\n`)
    : Object.entries(value).map(([name, item]) => `${inner}${JSON.stringify(name)}: ${literal(item, inner)},\n`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return items.length ? `${open}\n${items.join("")}${indent}${close}` : open + close;
}

/** A Python program for the openai package. */
export function asPython(origin, body, withKey) {
  const options = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`);
  const key = withKey ? 'os.environ["TEPHRA_API_KEY"]' : '"none"';
  return `${withKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key=${key})
stream = client.chat.completions.create(
${options.join("")})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}
