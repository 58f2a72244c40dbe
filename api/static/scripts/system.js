// Refreshes the page System while it is visible.

import { byId, textsOf } from "./page.js";

const REFRESH_MS = 3000;
const texts = textsOf("system-texts");

function showFreshness(isFresh) {
  const badge = byId("freshness");
  badge.hidden = false;
  badge.dataset.kind = isFresh ? "ok" : "error";
  badge.textContent = isFresh ? texts.live : texts.stale;
}

let isRefreshing = false;

async function refresh() {
  if (document.hidden || isRefreshing) return;
  isRefreshing = true;
  try {
    await htmx.ajax("GET", location.pathname, { target: "#state", swap: "innerMorph" });
  } finally {
    isRefreshing = false;
  }
}

// an error is not shown in place of what was known
document.addEventListener("htmx:before:swap", (event) => {
  if (event.detail.ctx.response.status < 400) return;
  event.preventDefault();
  showFreshness(false);
});
document.addEventListener("htmx:after:swap", () => showFreshness(true));
document.addEventListener("htmx:error", () => showFreshness(false));
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, REFRESH_MS);
