// The service's own sentences in the language of the page: those of one moment are asked for together, and each only once.

const isEnglish = document.documentElement.lang === "en";
const known = new Map(); // promises of translations, by code and text
const settled = new Map(); // translations that have arrived
let waiting = null;

async function ask(entries) {
  const body = JSON.stringify({ texts: entries.map(({ text }) => text), codes: entries.map(({ code }) => code) });
  const response = await fetch("/sentences", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  if (!response.ok) throw new Error(`/sentences: ${response.status}`);
  const { texts, titles } = await response.json();
  entries.forEach((entry, index) => entry.resolve({ ...texts[index], title: titles[index] }));
}

function sendSoon(entry) {
  if (!waiting) {
    waiting = [];
    queueMicrotask(() => {
      const entries = waiting;
      waiting = null;
      // without an answer the texts are shown as the service has sent them
      ask(entries).catch(() => entries.forEach(({ text, resolve }) => resolve({ text, lang: "en", title: "" })));
    });
  }
  waiting.push(entry);
}

/** Returns `text`, `lang` (empty, or "en" for a text without a translation) and the title of the error `code`. */
export function translation(text, code = "") {
  if (isEnglish || !text) return Promise.resolve({ text: text ?? "", lang: "", title: "" });
  const key = `${code}\n${text}`;
  if (!known.has(key)) {
    known.set(key, new Promise((resolve) => sendSoon({ text, code, resolve })));
    known.get(key).then((found) => settled.set(key, found));
  }
  return known.get(key);
}

/** Returns an element with a text of the service; one that stays English comes after the title of its error. */
export function sentence(text, code = "") {
  const place = document.createElement("span");
  const show = (found) => {
    const shown = document.createElement("span");
    if (found.lang) shown.lang = found.lang;
    shown.textContent = found.text;
    place.replaceChildren(found.lang ? found.title : "", shown);
  };
  if (isEnglish || !text) place.textContent = text ?? "";
  else if (settled.has(`${code}\n${text}`)) show(settled.get(`${code}\n${text}`));
  else translation(text, code).then(show);
  return place;
}
