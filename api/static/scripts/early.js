// Clicks and entries before the scripts of a page have run: they are kept, and given to the scripts afterwards. This file is
// loaded before the body, as a classic script: modules run after it.

(() => {
  const types = ["click", "submit", "input", "change"];
  const kept = new Map(); // by element: what is done again, by the type of the event

  const worksAlone = (form) => form?.matches("[action], [method]");

  function keep(event) {
    const { type, target, submitter } = event;
    const button = type === "click" ? target.closest("button") : null;
    if (type === "click" && (!button || (button.type === "submit" && worksAlone(button.form)))) return;
    if (type === "submit" && worksAlone(target)) return;
    const again = {
      click: () => button.click(),
      submit: () => target.requestSubmit(submitter),
    }[type] ?? (() => target.dispatchEvent(new Event(type, { bubbles: true })));
    event.preventDefault();
    event.stopImmediatePropagation();
    const element = button ?? target;
    kept.set(element, { ...kept.get(element), [type]: again });
  }

  async function giveBack() {
    const modules = [...document.querySelectorAll("script[type=module]")];
    await Promise.allSettled(modules.map(({ src }) => import(src))); // each has run already, or is waiting for data
    for (const type of types) removeEventListener(type, keep, true);
    for (const [element, again] of kept) if (element.isConnected) for (const give of Object.values(again)) give();
  }

  for (const type of types) addEventListener(type, keep, true);
  addEventListener("DOMContentLoaded", giveBack);
})();
