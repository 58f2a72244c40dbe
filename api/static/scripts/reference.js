// The documentation of the API: a search over its entries, and commands to copy.

import { byId, copy, fill, textsOf } from "./page.js";

const texts = textsOf("reference-texts");
const entries = [...document.querySelectorAll(".operation, .schema")].map((entry) => ({
  entry, link: document.querySelector(`[data-find="${entry.id}"]`), text: entry.textContent.toLowerCase(),
}));
const contents = [...document.querySelectorAll(".contents details")];
let wasOpen = null;

function search() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const { entry, link, text } of entries) {
    const isFound = words.every((word) => text.includes(word));
    entry.hidden = link.hidden = !isFound;
    count += isFound;
  }
  for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector("article:not([hidden])");
  showContents(words.length > 0);
  byId("found").textContent = words.length ? (count ? fill(texts.found, { count }) : texts.none) : "";
}

/** Opens the lists in which something is found, and restores them when the search ends. */
function showContents(isSearching) {
  if (isSearching && !wasOpen) wasOpen = contents.map((list) => list.open);
  contents.forEach((list, number) => {
    list.hidden = isSearching && !list.querySelector("li:not([hidden])");
    if (isSearching) list.open = true;
    else if (wasOpen) list.open = wasOpen[number];
  });
  if (!isSearching) wasOpen = null;
}

byId("search").addEventListener("input", search);

// a link to an entry that the search has hidden
document.addEventListener("click", ({ target }) => {
  const link = target.closest('a[href^="#"]');
  const entry = link && byId(decodeURIComponent(link.hash.slice(1)));
  if (!entry?.hidden) return;
  byId("search").value = "";
  search();
});

document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-copy]");
  if (button) copy(button.previousElementSibling.textContent);
});

byId("address").textContent = location.origin;
