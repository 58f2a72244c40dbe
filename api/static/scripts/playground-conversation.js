// A conversation with its branches: every message knows the one before it; versions of a message are its siblings.

import { apiMessages, withCalls } from "./playground-messages.js";

const KEY = "graftwerk-conversation:";
const STORED_CONVERSATIONS = 40;

export class Conversation {
  /** Reads the conversation that this browser keeps for a model; `version` is the digest of the model's files. */
  constructor(model, version) {
    this.model = model;
    this.version = version;
    this.clear();
    const kept = JSON.parse(localStorage.getItem(KEY + model) ?? "null");
    this.isOutdated = kept !== null && kept.version !== version;
    if (kept && !this.isOutdated) Object.assign(this, { messages: kept.messages, leaf: kept.leaf });
  }

  clear() {
    this.messages = [];
    this.leaf = null;
  }

  message(id) {
    return this.messages.find((message) => message.id === id) ?? null;
  }

  /** The messages from the first to the present one. */
  get path() {
    const found = [];
    for (let message = this.message(this.leaf); message; message = this.message(message.parent)) found.unshift(message);
    return found;
  }

  siblings(message) {
    return this.messages.filter(({ parent }) => parent === message.parent);
  }

  /** Adds a message after `parent` and makes it the present one. */
  add(role, text, parent, facts = {}) {
    const message = { id: crypto.randomUUID?.() ?? `${Date.now()}-${this.messages.length}`, parent, role, text, ...facts };
    this.messages.push(message);
    this.leaf = message.id;
    return message;
  }

  /** Makes a version of a message the present one, with the newest messages after it. */
  show(message) {
    let last = message;
    for (;;) {
      const next = this.messages.findLast(({ parent }) => parent === last.id);
      if (!next) break;
      last = next;
    }
    this.leaf = last.id;
    this.keep();
  }

  /** Removes a message that has no others after it. */
  drop(message) {
    this.messages = this.messages.filter((other) => other !== message);
    if (this.leaf === message.id) this.leaf = message.parent;
  }

  keep() {
    // probabilities are large and can be asked for again
    const messages = this.messages.map(({ logprobs, ...message }) => message);
    const kept = JSON.stringify({ version: this.version, messages, leaf: this.leaf, at: Date.now() });
    for (let others = stored(); ; others = stored()) {
      try {
        localStorage.setItem(KEY + this.model, kept);
        if (others.length <= STORED_CONVERSATIONS) return;
      } catch (error) {
        if (others.length === 0) throw error;
      }
      localStorage.removeItem(others.find((key) => key !== KEY + this.model) ?? others[0]);
    }
  }

  toMarkdown(names) {
    return this.path.map(({ role, text, tool_calls: calls }) => `**${names[role]}**\n\n${withCalls(text, calls)}\n`).join("\n");
  }

  toJson(settings) {
    return JSON.stringify({ model: this.model, ...settings, messages: apiMessages(this.path) }, null, 2);
  }
}

/** Keys of the kept conversations, the oldest first. */
function stored() {
  const age = (key) => JSON.parse(localStorage.getItem(key))?.at ?? 0;
  return Object.keys(localStorage).filter((key) => key.startsWith(KEY)).sort((one, other) => age(one) - age(other));
}
