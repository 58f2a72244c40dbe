// Uploads on the page: each becomes a model. Chosen, named, sent, imported; what was interrupted continues.

import { byId, bytes, duration, element, errorNotice, fill, icon, layoutTexts, textsOf, toast } from "./page.js";
import { chosen, dropped } from "./models_files.js";
import { runJob } from "./models_job.js";
import { Upload, discard, forget, unfinished } from "./models_tus.js";

const texts = textsOf("models-texts");
const FILES_LIMIT = 10_000; // of one import
const items = new Set();
let adding = Promise.resolve();

/** Returns the name, or the first with a number after it that no model has. */
async function freeName(name) {
  const taken = new Set([...items].map((item) => item.target));
  for (let number = 1; number < 100; number += 1) {
    const proposal = number === 1 ? name : `${name.slice(0, 92)}-${number}`;
    if (taken.has(proposal)) continue;
    const { status } = await fetch(`/api/models/${encodeURIComponent(proposal)}`);
    if (status === 404) return proposal;
  }
  return name;
}

class Item {
  constructor({ name, files }) {
    this.files = files;
    this.size = files.reduce((sum, { file }) => sum + file.size, 0);
    this.state = "ready";
    this.uploads = [];
    this.input = element("input", { value: name, maxlength: "96", required: true, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", spellcheck: "false", autocomplete: "off", "aria-label": texts.nameOfModel, title: texts.badName });
    this.bar = element("progress", { max: "1", value: "0", "aria-label": name, hidden: true });
    this.text = element("p", { class: "soft" });
    this.remove = element("button", { type: "button", class: "icon-button", "aria-label": fill(texts.remove, { name }), onclick: () => this.cancel() },
      icon("close"));
    this.outcome = element("div");
    this.node = element("li", { class: "upload" },
      element("div", { class: "row" }, this.input, this.remove), this.bar, this.text, this.outcome);
    this.#say(texts.ready);
  }

  get target() {
    return this.input.value;
  }

  #say(what) {
    const count = this.files.length === 1 ? this.files[0].path : fill(texts.files, { count: this.files.length });
    this.text.textContent = [what, count, bytes(this.size)].filter(Boolean).join(" · ");
  }

  /** Uploads the files that are missing and returns; the import then goes on by itself. */
  async run() {
    if (!this.input.reportValidity()) return;
    this.outcome.replaceChildren();
    this.state = "busy";
    update();
    try {
      await this.#send();
      this.#import().catch((error) => this.#fail(errorNotice(error)));
    } catch (error) {
      if (error.name !== "AbortError") this.#fail(errorNotice(error));
    }
  }

  async #send() {
    this.bar.hidden = false;
    const began = { at: performance.now(), bytes: null };
    let sentBefore = 0;
    for (const [index, { file, path }] of this.files.entries()) {
      const onSent = (sent) => this.#progress(began, sentBefore + sent);
      const onRetry = (seconds) => { this.text.textContent = fill(texts.retrying, { seconds }); };
      this.uploads[index] ??= new Upload(file, path);
      Object.assign(this.uploads[index], { onSent, onRetry });
      await this.uploads[index].send();
      sentBefore += file.size;
    }
  }

  #progress(began, sent) {
    began.bytes ??= sent; // what had arrived before does not count for the rate
    const seconds = (performance.now() - began.at) / 1000;
    const rate = seconds > 0.5 ? (sent - began.bytes) / seconds : 0;
    this.bar.value = this.size ? sent / this.size : 1;
    this.text.textContent = [
      texts.uploading, fill(layoutTexts.of, { done: bytes(sent), total: bytes(this.size) }),
      rate ? fill(layoutTexts.perSecond, { rate: bytes(rate) }) : null,
      rate && sent < this.size ? fill(layoutTexts.left, { time: duration((this.size - sent) / rate) }) : null,
    ].filter(Boolean).join(" · ");
  }

  async #import() {
    const { target } = this;
    this.input.disabled = true;
    this.bar.hidden = true;
    this.#say(texts.importing);
    const body = { kind: "import", source: { upload: this.uploads.map((upload) => upload.id) }, target };
    const ended = await runJob(this.outcome, body, target);
    if (ended?.status !== "succeeded") {
      this.#fail(null);
      return;
    }
    update();
    this.uploads.forEach(({ print }) => forget(print));
    this.state = "done";
    this.#say(texts.done);
    this.outcome.replaceChildren(element("a", { href: `/models/${target}` }, fill(texts.open, { name: target })));
  }

  #fail(notice) {
    this.state = "failed";
    this.input.disabled = false;
    this.#say("");
    if (notice) this.outcome.replaceChildren(notice);
    this.outcome.append(element("button", { type: "button", class: "small", onclick: () => this.run() }, texts.again));
  }

  async cancel() {
    items.delete(this);
    this.node.remove();
    update();
    if (this.state !== "done") await Promise.all(this.uploads.map((upload) => upload.cancel()));
    byId("choose-files").focus();
  }
}

function update() {
  byId("upload-actions").hidden = ![...items].some(({ state }) => state === "ready");
}

/** Adds models one group after the other: in the order in which people chose them, and no two with the same name. */
function add(models) {
  adding = adding.then(async () => append(await models)).catch((error) => toast(error.message, "error"));
}

async function append(models) {
  if (!models.length) toast(texts.empty, "warning");
  for (const model of models) {
    if (model.files.length > FILES_LIMIT) {
      toast(fill(texts.tooMany, { name: model.name, count: model.files.length, limit: FILES_LIMIT }), "error");
      continue;
    }
    const item = new Item({ ...model, name: await freeName(model.name) });
    items.add(item);
    byId("uploads").append(item.node);
  }
  update();
  if (items.size) byId("upload-all").focus();
}

async function showUnfinished() {
  const found = await unfinished();
  const rows = found.map((upload) => {
    const text = fill(texts.unfinishedOne, { name: upload.path, done: bytes(upload.received), total: bytes(upload.size) });
    const row = element("div", { class: "notice", "data-kind": "info" }, element("p", {}, text),
      element("button", { type: "button", class: "quiet small", onclick: () => discard(upload).catch(() => {}).then(() => row.remove()) }, texts.discard));
    return row;
  });
  byId("unfinished").replaceChildren(...rows);
}

/** Sets up the drop zone, which is the whole page, and the choosers. */
export function setUp(show) {
  const holdsFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
  let depth = 0;
  const over = (change) => {
    depth = Math.max(0, depth + change);
    document.body.toggleAttribute("data-over", depth > 0);
  };
  addEventListener("dragenter", (event) => holdsFiles(event) && over(1));
  addEventListener("dragleave", (event) => holdsFiles(event) && over(-1));
  addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    over(-depth);
    show();
    byId("unfinished").replaceChildren();
    add(dropped(event.dataTransfer));
  });
  for (const [button, input] of [["choose-files", "files"], ["choose-folder", "folder"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", ({ target }) => {
      byId("unfinished").replaceChildren();
      add(chosen(target.files));
      target.value = "";
    });
  }
  byId("upload-all").addEventListener("click", async () => {
    for (const item of [...items].filter(({ state }) => state === "ready")) await item.run();
  });
  addEventListener("beforeunload", (event) => [...items].some(({ state }) => state === "busy") && event.preventDefault());
  showUnfinished();
}
