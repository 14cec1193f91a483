"use strict";

// Charts: each stands in its figure as a specification. Their colours are variables of the style sheet.
async function draw() {
  const started = performance.now();
  for (const figure of document.querySelectorAll("figure.chart")) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const plot = figure.querySelector(".plot");
    await vegaEmbed(plot, spec, { renderer: "svg", actions: false, tooltip: { theme: "custom" } });
    plot.style.minHeight = "";
  }
  document.documentElement.dataset.drawn = Math.round(performance.now() - started);
}

// Tables: a press on a heading sorts the rows, a second one turns them round. What is missing stays last.
function sort(table, column, heading) {
  const falling = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const value = (row) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return { text, number: text === "" ? NaN : Number(text) };
  };
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, ...value(row) }));
  rows.sort((a, b) => {
    if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
    const both = !Number.isNaN(a.number) && !Number.isNaN(b.number);
    const order = both ? a.number - b.number : a.text.localeCompare(b.text);
    return falling ? -order : order;
  });
  table.tBodies[0].append(...rows.map((each) => each.row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sort(table, column, heading));
  });
}

const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

if (window.vegaEmbed) draw();
