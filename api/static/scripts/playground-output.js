// A model's text on the page: folded thinking, token probabilities, the marked first difference.

import { callsView } from "./playground-tools.js";
import { LANGUAGE, element, fill } from "./page.js";

const THINKING = /^\s*<think>([\s\S]*?)(?:<\/think>\s*|$)/;
const percent = new Intl.NumberFormat(LANGUAGE, { style: "percent", maximumFractionDigits: 1 });
const share = (logprob) => (logprob === null ? 0 : Math.exp(logprob));

/**
 * Splits an output into its thinking and its answer; `thinking` is null without any. The service tells both apart in
 * conversations with the model's own template; in other texts the tags are looked for.
 */
export function split({ text, reasoning, tool_calls: calls }) {
  if (reasoning) return { thinking: reasoning, said: text, hasEnded: text !== "" || Boolean(calls?.length) };
  const found = THINKING.exec(text);
  if (!found) return { thinking: null, said: text, hasEnded: true };
  return { thinking: found[1].trim(), said: text.slice(found[0].length), hasEnded: text.includes("</think>") };
}

/** Shows an output in an element: its thinking, folded once it has ended, its text, and its calls of tools. */
export function showText(node, output, texts) {
  const { thinking, said, hasEnded } = split(output);
  const fold = node.querySelector("details") ?? element("details", { class: "thinking" }, element("summary", {}, texts.thinking), element("p", { class: "words" }));
  const words = node.querySelector(":scope > .words") ?? element("p", { class: "words", lang: "" });
  if (thinking !== null) {
    if (!fold.isConnected) fold.open = !hasEnded;
    else if (hasEnded && !fold.dataset.ended) fold.open = false;
    if (hasEnded) fold.dataset.ended = "";
    fold.lastElementChild.textContent = thinking;
  }
  words.textContent = said;
  const calls = output.tool_calls ?? [];
  words.hidden = calls.length > 0 && !said;
  node.replaceChildren(...(thinking === null ? [] : [fold]), words, ...(calls.length ? [callsView(calls, texts)] : []));
}

/** Returns the tokens of an output, coloured by probability; arrow keys go from one to the next. */
export function tokenView(logprobs, texts) {
  const note = element("div", { class: "notice alternatives", role: "status" });
  const tokens = logprobs.map((entry) => {
    const token = element("span", { class: "token", tabindex: -1, role: "option", "aria-label": describe(entry) }, entry.token);
    token.style.setProperty("--share", share(entry.logprob));
    const show = () => note.replaceChildren(alternatives(entry));
    token.addEventListener("mouseenter", show);
    token.addEventListener("focus", show);
    return token;
  });
  const list = element("p", { class: "words tokens", role: "listbox", "aria-label": texts.tokens, lang: "" }, tokens);
  if (tokens[0]) tokens[0].tabIndex = 0;
  list.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = tokens[tokens.indexOf(document.activeElement) + by];
    if (!next) return;
    event.preventDefault();
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  function describe({ token, logprob }) {
    return fill(texts.probability, { token: JSON.stringify(token), share: percent.format(share(logprob)) });
  }

  function alternatives(entry) {
    const rows = [entry, ...entry.top.filter(({ token_id, token }) => (token_id ?? token) !== (entry.token_id ?? entry.token))];
    return element("table", {}, element("tbody", {}, rows.map((row, index) => element("tr", {},
      element("td", {}, element("code", {}, JSON.stringify(row.token))),
      element("td", { class: "number" }, index === 0 ? element("strong", {}, percent.format(share(row.logprob))) : percent.format(share(row.logprob))),
      element("td", { class: "grow" }, element("meter", { min: 0, max: 1, value: share(row.logprob), "aria-label": describe(row) }))))));
  }

  return element("div", { class: "stack tight" }, list, note);
}

/** Returns a text whose part from `character` on is marked; null marks nothing. */
export function markedText(text, character) {
  const words = element("p", { class: "words", lang: "" });
  if (character === null) words.textContent = text;
  else {
    // a position counts code points, as in Python
    const points = [...text];
    words.append(points.slice(0, character).join(""), element("mark", {}, points.slice(character).join("")));
  }
  return words;
}
