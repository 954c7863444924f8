"use strict";
// Sorting, filtering and tooltips. The page is complete without this script, just static.

// Missing values last in both directions; numbers numerically, text in natural order ("r2" before "r16").
function compare(a, b, numeric, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (!numeric) return sign * a.localeCompare(b, "en", { numeric: true });
  return sign * ((Number(a) > Number(b)) - (Number(a) < Number(b)));
}

// Ascending, then descending, then the study's own order.
function sort(table, header) {
  complete(table);
  const next = { none: "ascending", ascending: "descending", descending: "none" }[header.getAttribute("aria-sort")];
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", next);
  const value = (row) => row.cells[header.cellIndex].dataset.value;
  const sign = next === "descending" ? -1 : 1;
  const rows = [...table.tBodies[0].rows].sort((a, b) => a.dataset.place - b.dataset.place);
  if (next !== "none") rows.sort((a, b) => compare(value(a), value(b), "numeric" in header.dataset, sign));
  table.tBodies[0].append(...rows);
}

function filter(table, input, count) {
  complete(table);
  const words = input.value.toLowerCase().split(/\s+/);
  const rows = [...table.tBodies[0].rows];
  const text = (row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
  for (const row of rows) row.hidden = !words.every((word) => text(row).includes(word));
  const shown = rows.filter((row) => !row.hidden);
  count.textContent = input.value.trim() ? `${shown.length} of ${rows.length} rows` : "";
  stop(table, shown[0]?.cells[0]);
}

// Arrow keys move between cells; one cell at a time is in the tab order.
function stop(table, cell) {
  for (const other of table.tBodies[0].querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  if (cell) cell.tabIndex = 0;
}

function walk(event) {
  const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [];
  const cell = event.target.closest("tbody [tabindex]");
  if (down === undefined || !cell) return;
  const rows = [...cell.closest("tbody").rows].filter((row) => !row.hidden);
  const goal = rows[rows.indexOf(cell.parentElement) + down]?.cells[cell.cellIndex + right];
  event.preventDefault();
  goal?.focus();
}

// Long tables keep most of their rows in a template: a page of thousands of rows opens as fast as a short one.
function complete(table) {
  const rest = table.closest(".table").querySelector("template");
  if (!rest) return;
  const first = table.tBodies[0].rows.length;
  table.tBodies[0].append(rest.content);
  rest.remove();
  table.closest(".table").querySelector(".more").remove();
  ready(table, first);
}

function ready(table, first) {
  for (const [place, row] of [...table.tBodies[0].rows].entries()) {
    if (place < first) continue;
    row.dataset.place = place;
    for (const cell of row.cells) cell.tabIndex = -1;
    take(row);
  }
}

function prepare(table) {
  ready(table, 0);
  for (const header of table.tHead.rows[0].cells) {
    header.querySelector("button").addEventListener("click", () => sort(table, header));
  }
  stop(table, table.tBodies[0].rows[0]?.cells[0]);
  table.addEventListener("keydown", walk);
  table.tBodies[0].addEventListener("focusin", (event) => stop(table, event.target));
  const more = table.closest(".table").querySelector(".more");
  if (more) {
    more.hidden = false;
    more.addEventListener("click", () => complete(table));
  }
  const box = table.closest(".table").querySelector(".filter");
  if (!box) return;
  box.hidden = false;
  box.addEventListener("input", ({ target }) => filter(table, target, box.querySelector("output")));
}

// Takes the text of native tooltips.
function take(part) {
  for (const marked of part.querySelectorAll("[title]")) {
    marked.dataset.tip = marked.title;
    marked.removeAttribute("title");
  }
}

// Native tooltips open neither on touch screens nor on keyboard focus, so ours replaces them.
function tooltips() {
  const tip = Object.assign(document.createElement("div"), { id: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  for (const part of document.querySelectorAll("main")) take(part);
  for (const title of document.querySelectorAll("svg g > title")) {
    title.parentElement.dataset.tip = title.textContent;
    title.remove();
  }
  const show = (event) => {
    const marked = event.target.closest?.("[data-tip]");
    tip.hidden = !marked;
    if (!marked) return;
    tip.textContent = marked.dataset.tip;
    if (event.type === "focusin") marked.setAttribute("aria-describedby", tip.id);
    // A line can be as wide as its figure, so place the tooltip at the pointer rather than at the mark.
    const box = marked.getBoundingClientRect();
    const { clientX: x = box.left, clientY: y } = event;
    const [above, below] = y === undefined ? [box.top - 6, box.bottom + 6] : [y - 8, y + 18];
    const fits = below + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(x, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${fits ? below : Math.max(8, above - tip.offsetHeight)}px`;
  };
  for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, show);
  document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
  document.addEventListener("scroll", () => (tip.hidden = true), true);
}

for (const table of document.querySelectorAll(".table table")) prepare(table);
tooltips();
