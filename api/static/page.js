// Shared by the scripts of the page: elements, requests with the key of this tab, event streams.

const KEY = "graftwerk-api-key";

export const ENDED = ["succeeded", "failed", "canceled"];
export const byId = (id) => document.getElementById(id);

/** Creates an element; text never becomes markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Sends a request with the key of this tab, if any; status 401 shows the key form. Throws for an error response. */
export async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  byId("key-form").hidden = response.status !== 401;
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    const message = [problem.detail, problem.hint].filter(Boolean).join(" ");
    throw new Error(message || `${path} returned status ${response.status}.`);
  }
  return response;
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Yields the events of a stream until it ends. `fetch` is used because `EventSource` cannot send a key. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (buffered + value).split("\n\n");
    buffered = frames.pop();
    for (const frame of frames) {
      const fields = {};
      for (const line of frame.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (fields.data) yield { id: fields.id, name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
