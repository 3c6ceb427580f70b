"use strict";
// Without this script the page is whole, and only does not sort, enlarge or change its colours.

const root = document.documentElement;
root.classList.add("js");

// Light or dark: as the system has it, until a reader chooses.
const theme = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
try {
  const kept = localStorage.getItem("samtl-theme");
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
} catch { /* a page from a file may have no memory */ }
theme.hidden = false;
showTheme();
dark.addEventListener("change", showTheme);
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("samtl-theme", root.dataset.theme);
  } catch { /* as above */ }
  showTheme();
});

// Tables: a click on a column's name sorts by it, another the other way round. What has no value goes last.
for (const head of document.querySelectorAll("thead")) {
  head.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const th = button.parentElement;
    const body = head.parentElement.tBodies[0];
    const down = th.getAttribute("aria-sort") === "ascending";
    for (const other of head.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = th.classList.contains("n");
    const keyed = [...body.rows].map((row) => {
      const cell = row.cells[th.cellIndex];
      const key = numeric ? Number(cell.dataset.value ?? NaN) : cell.textContent;
      return { row, key, missing: numeric ? Number.isNaN(key) : key === "" };
    });
    const order = new Intl.Collator("en", { numeric: true });
    keyed.sort((a, b) => {
      if (a.missing || b.missing) return Number(a.missing) - Number(b.missing);
      const sign = numeric ? a.key - b.key : order.compare(a.key, b.key);
      return down ? -sign : sign;
    });
    body.append(...keyed.map((entry) => entry.row));
  });
}

// Boxes that scroll can be reached by keyboard, and no others.
const boxes = new ResizeObserver((entries) => {
  for (const { target: box } of entries) {
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    box.tabIndex = scrolls ? 0 : -1;
  }
});
for (const box of document.querySelectorAll(".frame, .scroll")) boxes.observe(box);

// Figures that open large.
const dialog = document.getElementById("large");
const stage = dialog.querySelector(".stage");
const title = document.getElementById("large-title");
let opener = null;
let scale = 1;

// Pixels that a figure opens at where the screen is narrower; all of it is seen at scale 1.
const COMFORTABLE = 720;
const zoom = (to) => {
  const shown = stage.firstElementChild;
  if (!shown) return;
  // Where the middle of what is seen was, so that it stays there.
  const x = (stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth;
  const y = (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight;
  const style = getComputedStyle(stage);
  const wide = stage.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const high = stage.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  const [width, height] = shown.style.aspectRatio.split("/").map(Number);
  const whole = Math.min(wide, (high * width) / height);
  scale = Math.min(8, Math.max(1, to ?? COMFORTABLE / whole));
  shown.style.width = `${whole * scale}px`;
  stage.scrollLeft = x * stage.scrollWidth - stage.clientWidth / 2;
  stage.scrollTop = y * stage.scrollHeight - stage.clientHeight / 2;
};
const open = (part, button) => {
  const shown = part.querySelector(".chart, .picture");
  // A copy needs ids of its own, or it loses its clips and markers.
  stage.innerHTML = shown.outerHTML.replaceAll(`${part.id}--`, `large--${part.id}--`);
  stage.firstElementChild.style.minWidth = stage.firstElementChild.style.maxWidth = "none";
  title.textContent = part.querySelector("h3").textContent;
  opener = button;
  dialog.showModal();
  dialog.querySelector('[data-zoom="close"]').focus();
  zoom();
  stage.scrollTop = stage.scrollLeft = 0;
};
for (const button of document.querySelectorAll(".open")) {
  const part = button.closest(".part");
  button.hidden = false;
  button.addEventListener("click", () => open(part, button));
  part.querySelector(".frame").addEventListener("click", () => open(part, button));
}
dialog.addEventListener("click", (event) => {
  const asked = event.target.closest("[data-zoom]")?.dataset.zoom;
  if (asked === "close") dialog.close();
  else if (asked) zoom(scale * (asked === "larger" ? 1.4 : 1 / 1.4));
});
dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "+" || event.key === "=") zoom(scale * 1.4);
  else if (event.key === "-") zoom(scale / 1.4);
  else if (event.key === "0") zoom(1);
});
addEventListener("resize", () => dialog.open && zoom(scale));
dialog.addEventListener("close", () => {
  stage.replaceChildren();
  opener?.focus({ preventScroll: true });
});
