// What the parts of the page share: elements, requests with the key of this tab, events as they come.

const KEY = "graftwerk-api-key";

export const ENDED = ["succeeded", "failed", "canceled"];
export const byId = (id) => document.getElementById(id);

/** An element; text never becomes markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A request with the key of this tab, if there is one; a missing key shows the form. */
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  byId("key-form").hidden = response.status !== 401;
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    const said = [problem.detail, problem.hint].filter(Boolean).join(" ");
    throw new Error(said || `${path} answered ${response.status}`);
  }
  return response;
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** The events of a stream until it ends. `fetch` and not `EventSource`, which cannot send a key. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (waiting + value).split("\n\n");
    waiting = frames.pop();
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
