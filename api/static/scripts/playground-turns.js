// The turns of a conversation on the page: texts, versions, and what can be done with each.

import { iconButton } from "./playground-adapters.js";
import { withCalls } from "./playground-messages.js";
import { showText, split, tokenView } from "./playground-output.js";
import { resultsForm, resultsView } from "./playground-tools.js";
import { byId, copy, element, fill } from "./page.js";
import { sentence } from "./sentences.js";

/**
 * Shows the conversation; `actions` are `edit(message, text)`, `giveResults(parent, results)`, `regenerate(message)`, `useSeed(seed)`,
 * `isRunning()`.
 */
export function showTurns(conversation, texts, actions) {
  const turns = conversation.path.map((message) => turn(conversation, message, texts, actions));
  byId("turns").replaceChildren(...turns);
  byId("chat-empty").hidden = turns.length > 0;
  scrollToEnd();
}

export function scrollToEnd() {
  const list = byId("turns");
  list.scrollTop = list.scrollHeight;
}

function turn(conversation, message, texts, actions) {
  const body = element("div", { class: "body" });
  if (message.role === "tool") body.append(resultsView(message.results));
  else showText(body, message, texts);
  const item = element("li", { class: "turn", "data-role": message.role, "data-id": message.id },
    element("p", { class: "who soft" }, { user: texts.you, tool: texts.tools }[message.role] ?? message.label ?? texts.model), body);
  if (message.tool_calls?.length && message.id === conversation.leaf && !message.error && !actions.isRunning()) {
    item.append(resultsForm(message.tool_calls, texts, (results) => actions.giveResults(message.id, results)));
  }
  if (message.error) item.append(message.error);
  for (const note of notes(message, texts)) item.append(note);
  item.append(tools(conversation, message, item, texts, actions));
  return item;
}

function notes(message, texts) {
  const facts = (message.facts ?? []).join(" · ");
  return [
    ...(message.warnings ?? []).map((warning) => element("p", { class: "notice", "data-kind": "warning" }, sentence(warning))),
    ...(facts ? [element("p", { class: "soft" }, facts, message.job ? element("a", { class: "job", href: `/jobs/${message.job}` }, texts.job) : null)] : []),
  ];
}

function tools(conversation, message, item, texts, actions) {
  const row = element("div", { class: "row actions" });
  const siblings = conversation.siblings(message);
  if (siblings.length > 1) {
    const at = siblings.indexOf(message);
    const to = (index) => () => { conversation.show(siblings[index]); actions.redraw(); };
    row.append(
      element("button", { type: "button", class: "icon-button", "aria-label": texts.previous, disabled: at === 0, onclick: to(at - 1) }, "‹"),
      element("span", { class: "soft" }, fill(texts.version, { n: at + 1, count: siblings.length })),
      element("button", { type: "button", class: "icon-button", "aria-label": texts.next, disabled: at === siblings.length - 1, onclick: to(at + 1) }, "›"));
  }
  row.append(iconButton("copy", texts.copy, () => copy(withCalls(split(message).said, message.tool_calls))));
  if (message.role !== "assistant") row.append(plain(texts.edit, () => editor(message, item, texts, actions)));
  else row.append(plain(texts.regenerate, () => actions.regenerate(message)));
  if (message.logprobs?.length) row.append(tokensButton(message, item, texts));
  if (message.seed !== undefined) row.append(plain(texts.useSeed, () => actions.useSeed(message.seed), { title: String(message.seed) }));
  return row;
}

const plain = (text, onclick, attributes = {}) => element("button", { type: "button", class: "quiet small", onclick, ...attributes }, text);

function tokensButton(message, item, texts) {
  const body = item.querySelector(".body");
  const button = plain(texts.tokens, () => {
    const isShown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!isShown));
    if (isShown) {
      body.replaceChildren();
      showText(body, message, texts);
    } else body.replaceChildren(tokenView(message.logprobs, texts));
  }, { "aria-pressed": "false" });
  return button;
}

function editor(message, item, texts, actions) {
  const form = message.role === "tool"
    ? resultsForm(message.results, texts, (results) => actions.giveResults(message.parent, results), actions.redraw)
    : textForm(message, texts, actions);
  item.querySelector(".body").replaceChildren(form);
  item.querySelector(".actions").hidden = true;
  form.querySelector("textarea").focus();
}

function textForm(message, texts, actions) {
  const text = element("textarea", { rows: 4, "aria-label": texts.edit });
  text.value = message.text;
  return element("form", {
    class: "stack tight",
    onsubmit: (event) => {
      event.preventDefault();
      if (text.value.trim()) actions.edit(message, text.value);
    },
  }, text, element("div", { class: "row" }, element("button", {}, texts.save),
    element("button", { type: "button", class: "quiet", onclick: () => actions.redraw() }, texts.cancel)));
}
