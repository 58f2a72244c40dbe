// The playground: the conversation and the raw continuation. A reply is a generate job whose text is streamed.

import { Choices, groupsOf, offer, pick, searchField } from "./playground-choices.js";
import { setUpComparison } from "./playground-compare.js";
import { Conversation } from "./playground-conversation.js";
import { Run } from "./playground-generate.js";
import { addPiece, apiMessages } from "./playground-messages.js";
import { showText, tokenView } from "./playground-output.js";
import { keptAdapters, settingsOf } from "./playground-settings.js";
import { setUpTabs } from "./playground-tabs.js";
import { scrollToEnd, showTurns } from "./playground-turns.js";
import { snippets } from "./snippets.js";
import { byId, confirmed, copy, element, errorNotice, failureNotice, fill, textsOf, toast } from "./page.js";

const MODEL_KEY = "graftwerk-playground-model";
const data = textsOf("playground-data");
const texts = textsOf("playground-texts");

let conversation = null;
let run = null;

const models = new Choices(data.models, "/playground/models");
const adapters = new Choices(data.adapters, "/playground/adapters");
const model = () => byId("model").value;
const last = localStorage.getItem(MODEL_KEY);
// what this browser keeps may be among those that are not listed
await Promise.all([models.ask(last ? [last] : []), adapters.ask(keptAdapters())]).catch(toast);
const settings = settingsOf(data, adapters, texts, () => {});

// ---- the model ----

function openModel() {
  const name = model();
  byId("model-link").hidden = !name;
  if (!name) return;
  byId("model-link").href = `/models/${encodeURIComponent(name)}`;
  localStorage.setItem(MODEL_KEY, name);
  conversation = new Conversation(name, models.known.get(name).version);
  if (conversation.isOutdated) toast(texts.branchLost);
  redraw();
}

byId("model")?.addEventListener("change", () => {
  run?.cancel();
  openModel();
});

/** Returns what every request of this page says about model and text. */
const common = () => ({
  kind: "generate", model: model(), adapters: settings.adapters.value(), fit_context: true,
  sampling: settings.sampling(), ...settings.loading(), ...settings.form.output(),
});

/** Returns the request for the next reply to the last message of a path. */
const chatRequest = (path) => ({
  ...common(), ...settings.template(), ...settings.form.conversation(), messages: apiMessages(path, settings.system()),
});

function isReady(options) {
  if (!model()) toast(texts.chooseModel, "warning");
  return Boolean(model()) && !run && settings.check(options);
}

const isReadyToChat = () => isReady({ isConversation: true });

function factsOf(job) {
  const { engine, template, tokens_per_second: rate, outputs: [output] } = job.result;
  return [
    fill(texts.facts, { tokens: output.usage.completion_tokens, rate: rate.toFixed(1) }),
    template && fill(texts.template, { name: template }),
    engine && fill(texts.engine, { name: engine }),
    output.finish_reason === "length" && texts.length,
    output.dropped_turns && fill(texts.dropped, { count: output.dropped_turns }),
  ].filter(Boolean);
}

// ---- the conversation ----

const actions = {
  redraw,
  edit(message, text) {
    if (isReadyToChat()) answer(conversation.add("user", text, message.parent));
  },
  giveResults(parent, results) {
    if (!isReadyToChat()) return;
    answer(conversation.add("tool", results.map(({ text }) => text).join("\n\n"), parent, { results }));
    byId("chat-text").focus(); // the field that had it is gone
  },
  isRunning: () => run !== null,
  regenerate(message) {
    if (isReadyToChat()) answer(conversation.message(message.parent));
  },
  useSeed(seed) {
    byId("seed").value = seed;
    byId("seed").dispatchEvent(new Event("input", { bubbles: true }));
    byId("seed").focus();
  },
};

function redraw() {
  showTurns(conversation, texts, actions);
}

/** Generates the reply to a message of the person. */
async function answer(question) {
  const own = conversation;
  own.leaf = question.id;
  const request = chatRequest(own.path);
  const adapters = settings.adapters.value().map(({ name, scale }) => (scale === 1 ? name : `${name}@${scale}`));
  const reply = own.add("assistant", "", question.id, { label: [own.model, ...adapters].join(" + "), facts: [texts.queued] });
  setRunning(new Run());
  redraw();
  const body = () => document.querySelector(`[data-id="${reply.id}"] .body`);
  const show = () => { if (own === conversation && body()) { showText(body(), reply, texts); scrollToEnd(); } };
  try {
    const ended = await run.start(request, {
      onSubmitted: ({ id, warnings }) => Object.assign(reply, { job: id, warnings }),
      onToken: (piece) => {
        addPiece(reply, piece);
        show();
      },
    });
    finish(reply, ended);
  } catch (error) {
    Object.assign(reply, { error: errorNotice(error), facts: [] });
  } finally {
    setRunning(null);
    if (own === conversation) redraw();
    if (reply.error) forget(own, reply, question);
    own.keep();
  }
}

/**
 * Takes a failed reply out of the conversation, where it is shown once, and gives a question without other replies back. Results of
 * tools stay, where they can be edited and sent again.
 */
function forget(own, reply, question) {
  own.drop(reply);
  if (question.role === "tool" || own.messages.some(({ parent }) => parent === question.id)) return;
  own.drop(question);
  if (own === conversation && !byId("chat-text").value) byId("chat-text").value = question.text;
}

function finish(reply, job) {
  reply.warnings = [];
  if (job.status === "succeeded") {
    const { outputs: [output], ignored } = job.result;
    if (ignored?.length) reply.warnings = [fill(texts.ignored, { names: ignored.join(", ") })];
    Object.assign(reply, {
      text: output.text ?? "", reasoning: output.reasoning ?? undefined, tool_calls: output.tool_calls ?? undefined, facts: factsOf(job),
      logprobs: output.logprobs ?? undefined, seed: output.seed ?? undefined,
    });
  } else if (job.status === "canceled") {
    reply.facts = [texts.stopped];
  } else {
    Object.assign(reply, { error: failureNotice(job.error), facts: [] });
  }
}

function setRunning(started) {
  run = started;
  for (const name of ["chat", "raw"]) {
    byId(`${name}-send`).disabled = Boolean(run);
    byId(`${name}-stop`).hidden = !run;
  }
}

if (byId("chat-form")) {
  byId("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("chat-text").value;
    if (!text.trim() || !isReadyToChat()) return;
    byId("chat-text").value = "";
    answer(conversation.add("user", text, conversation.leaf));
  });
  for (const [area, form] of [["chat-text", "chat-form"], ["compare-text", "compare-form"]]) {
    byId(area).addEventListener("keydown", (event) => {
      // Enter belongs to an input method while it composes a character
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      byId(form).requestSubmit();
    });
  }
  byId("chat-stop").addEventListener("click", () => run?.cancel());
  byId("raw-stop").addEventListener("click", () => run?.cancel());
  byId("chat-new").addEventListener("click", async () => {
    if (!conversation?.messages.length || !(await confirmed(texts.clearQuestion, { confirm: texts.clear }))) return;
    run?.cancel();
    conversation.clear();
    conversation.keep();
    redraw();
    byId("chat-text").focus();
  });
  byId("chat-markdown").addEventListener("click", () => save("md", "text/markdown",
    conversation?.toMarkdown({ user: texts.you, assistant: conversation.model, tool: texts.tools })));
  byId("chat-json").addEventListener("click", () => settings.check({ isConversation: true }) && save("json", "application/json",
    conversation?.toJson({
      adapters: settings.adapters.value(), system: settings.system(), ...settings.template(), sampling: settings.sampling(),
      ...settings.form.output(), ...settings.form.conversation(),
    })));
  for (const name of ["curl", "python"]) byId(`chat-${name}`).addEventListener("click", () => copyAs(name));
  byId("raw-send").addEventListener("click", continueText);
}

/** Copies the request for the reply to the text that is being written; without one, for the last reply. */
function copyAs(name) {
  if (!model() || !settings.check({ isConversation: true })) return;
  const path = [...conversation.path];
  const text = byId("chat-text").value;
  if (text.trim()) path.push({ role: "user", text });
  else if (path.at(-1)?.role === "assistant") path.pop();
  if (!path.length) {
    toast(texts.nothingAsked, "warning");
    return;
  }
  const needsKey = "needsKey" in byId("chat-form").dataset;
  copy(snippets(chatRequest(path), { url: location.origin, needsKey })[name]);
}

function save(suffix, type, text) {
  if (!text) return;
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: `${conversation.model}.${suffix}` }).click();
  URL.revokeObjectURL(url);
}

// ---- a text that is continued ----

async function continueText() {
  const area = byId("raw-text");
  if (!isReady()) return;
  const before = area.value;
  let added = "";
  setRunning(new Run());
  byId("raw-note").textContent = texts.queued;
  byId("raw-tokens").replaceChildren();
  area.readOnly = true;
  try {
    const job = await run.start({ ...common(), template: "raw", prompt: before }, {
      onToken: ({ offset, text }) => {
        added = [...added].slice(0, offset).join("") + text;
        area.value = before + added;
        area.scrollTop = area.scrollHeight;
      },
    });
    showContinuation(job, before);
  } catch (error) {
    byId("raw-note").textContent = "";
    byId("raw-tokens").replaceChildren(errorNotice(error));
  } finally {
    area.readOnly = false;
    setRunning(null);
    byId("raw-undo").disabled = area.value === before;
    byId("raw-undo").onclick = () => {
      area.value = before;
      byId("raw-undo").disabled = true;
    };
  }
}

function showContinuation(job, before) {
  const note = byId("raw-note");
  note.textContent = job.status === "canceled" ? texts.stopped : "";
  if (job.status === "failed") byId("raw-tokens").replaceChildren(failureNotice(job.error));
  if (job.status !== "succeeded") return;
  const [output] = job.result.outputs;
  byId("raw-text").value = before + output.text;
  note.textContent = [...factsOf(job), fill(texts.seed, { seed: output.seed ?? "" })].join(" · ");
  if (output.logprobs?.length) byId("raw-tokens").replaceChildren(tokenView(output.logprobs, texts));
}

// ---- start ----

if (byId("model")) {
  const asked = new URLSearchParams(location.search).get("model");
  if (!asked && models.known.has(last)) pick(byId("model"), last);
  const find = searchField(models, byId("model"), { label: texts.findModel, texts, show: (found) => offer(byId("model"), groupsOf(found, texts)) });
  if (find) byId("model").before(find);
  openModel();
  setUpComparison({ models, adapters, texts, settings, model });
  // until here a form would leave the page
  setRunning(null);
  setUpTabs();
  if (matchMedia("(max-width: 64rem)").matches) document.querySelector(".settings").open = false;
}
