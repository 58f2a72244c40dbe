// The playground: a conversation or a continued text; each reply is a generate job whose text is streamed.

import { ENDED, byId, element, eventsOf, request } from "./page.js";

const RAW = "raw";
const TRIES = 5;
const RECONNECT_MS = 1000;

const turns = [];
let running = null;

/** Lists the models that can generate, keeping the selection if possible. */
export function offerModels(models) {
  const select = byId("try-model");
  const names = models.filter(({ kind, problems }) => kind === "huggingface" && !problems.length).map(({ name }) => name);
  const chosen = names.includes(select.value) ? select.value : names[names.length - 1];
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  if (chosen) select.value = chosen;
  byId("try-form").hidden = names.length === 0;
  byId("no-generators").hidden = names.length > 0;
}

function requestFor(text) {
  const template = byId("try-template").value;
  const prompt = template === RAW
    ? { prompt: text }
    : { messages: [...turns, { role: "user", content: text }], ...(template && { template }) };
  return {
    kind: "generate", model: byId("try-model").value, ...prompt, fit_context: true, metadata: { origin: "page" },
    sampling: {
      temperature: byId("try-temperature").valueAsNumber,
      max_new_tokens: byId("try-tokens").valueAsNumber,
    },
  };
}

function turnItem(role, text) {
  const words = element("p", { class: "words" }, text);
  const list = byId("try-turns");
  list.append(element("li", { "data-role": role }, words));
  list.scrollTop = list.scrollHeight;
  return words;
}

/** Shows the text of a job from its first event on and returns the ended job. Reconnects if the stream breaks. */
async function follow(id, words) {
  let lastId = "0-0";
  for (let tries = 1; ; tries += 1) {
    const response = await request(`/api/jobs/${id}/events`, { headers: { "Last-Event-ID": lastId } });
    try {
      for await (const event of eventsOf(response)) {
        tries = 0;
        lastId = event.id;
        if (event.name === "token") show(event.data, words);
        else if (event.name === "status" && ENDED.includes(event.data.status)) return event.data;
      }
    } catch (error) {
      if (tries >= TRIES) throw error;
    }
    await new Promise((resume) => setTimeout(resume, RECONNECT_MS));
  }
}

function show({ offset, text }, words) {
  // a job that runs again sends its text from the beginning
  if (offset === 0) words.textContent = "";
  words.append(text);
  const list = byId("try-turns");
  list.scrollTop = list.scrollHeight;
}

function factsOf(job) {
  const output = job.result.outputs[0];
  const speed = `${output.usage.completion_tokens} tokens, ${job.result.tokens_per_second.toFixed(1)} per second`;
  const cut = output.finish_reason === "length" ? "stopped at the token limit" : null;
  return [`template ${job.result.template}`, speed, cut].filter(Boolean);
}

async function generate(text) {
  const question = turnItem("user", text);
  const words = turnItem("assistant", "");
  const note = (css, message) => words.parentElement.append(element("p", { class: css }, message));
  try {
    const body = requestFor(text);
    const response = await request("/api/jobs", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    const submitted = await response.json();
    running = submitted.id;
    setRunning(true);
    for (const warning of submitted.warnings) note("warning", warning);
    const job = await follow(running, words);
    if (job.status === "succeeded") {
      words.textContent = job.result.outputs[0].text;
      note("soft", factsOf(job).join(" · "));
    } else {
      note("error", job.status === "canceled" ? "Stopped." : `${job.error.message} ${job.error.hint}`);
    }
    // a stopped reply belongs to the conversation, a failed one does not
    if (job.status !== "failed" && body.messages && words.textContent) {
      turns.push({ role: "user", content: text }, { role: "assistant", content: words.textContent });
    }
  } catch (error) {
    note("error", error.message);
    if (!byId("try-text").value) byId("try-text").value = text;
    question.parentElement.dataset.failed = "";
  } finally {
    running = null;
    setRunning(false);
  }
}

function setRunning(isRunning) {
  byId("try-send").disabled = isRunning;
  byId("try-stop").hidden = !isRunning;
}

byId("try-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("try-text").value;
  if (running || byId("try-send").disabled || !text.trim()) return;
  byId("try-text").value = "";
  byId("try-send").disabled = true;
  generate(text);
});

byId("try-text").addEventListener("keydown", (event) => {
  // Enter belongs to an input method while it composes a character
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("try-form").requestSubmit();
});

byId("try-stop").addEventListener("click", () => {
  // a job that has just ended refuses the cancellation and is shown as ended
  if (running) request(`/api/jobs/${running}/cancel`, { method: "POST" }).catch(() => {});
});

byId("try-reset").addEventListener("click", () => {
  turns.length = 0;
  byId("try-turns").replaceChildren();
});
