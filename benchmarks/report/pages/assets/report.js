"use strict";
// Everything here is an addition: without it the pages show the same content, unsorted and unfiltered.

for (const controls of document.querySelectorAll(".controls")) controls.hidden = false;

function key(row, column) {
  const cell = row.cells[column];
  if (!cell) return "";
  const text = cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent.trim();
  const number = parseFloat(text);
  return text !== "" && !Number.isNaN(number) && /^[-+]?[\d.]/.test(text) ? number : text;
}

function compare(a, b) {
  const x = typeof a === "number", y = typeof b === "number";
  if (x && y) return a - b;
  if (x !== y) return x ? -1 : 1; // figures before dashes
  return String(a).localeCompare(String(b));
}

function sort(table, column, down) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row, index) => ({ row, index, key: key(row, column) }));
  rows.sort((a, b) => {
    const missing = (typeof b.key === "number") - (typeof a.key === "number");
    return missing || (down ? -1 : 1) * compare(a.key, b.key) || a.index - b.index;
  });
  for (const { row } of rows) { row.classList.remove("start"); body.append(row); }
  for (const again of table.querySelectorAll(".again")) again.classList.remove("again");
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = table.querySelector("tr.sort");
  if (!heads) continue;
  Array.from(heads.cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.className = "sorter";
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending" && column > 0;
      const up = head.getAttribute("aria-sort") === "ascending" && column === 0;
      for (const other of heads.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down || up ? "descending" : "ascending");
      sort(table, column, down || up);
    });
  });
}

for (const input of document.querySelectorAll("input.filter")) {
  const table = document.getElementById(input.dataset.table);
  const hits = input.closest(".controls").querySelector(".hits");
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    hits.textContent = `${shown} of ${table.tBodies[0].rows.length}`;
  };
  input.addEventListener("input", apply);
  input.value = new URLSearchParams(location.search).get("q") || ""; // what the search on another page asked for
  apply();
}

for (const section of document.querySelectorAll("section.heat")) {
  const select = section.querySelector("select.metric");
  const cells = section.querySelectorAll("td[data-all]");
  const steps = section.dataset.steps.split(";").map(Number);
  select.addEventListener("change", () => {
    for (const cell of cells) {
      const value = parseFloat(cell.dataset.all.split(";")[select.value]);
      const part = (cell.dataset.parts || "").split(";")[select.value];
      const missing = Number.isNaN(value);
      cell.className = missing ? "" : `h${steps.filter((step) => step <= value).length}`;
      cell.dataset.value = missing ? "" : value;
      (cell.querySelector("a") || cell.firstChild || cell).textContent = missing ? part || "—" : value.toFixed(1);
    }
    section.querySelector(".shown").textContent = select.selectedOptions[0].textContent;
  });
}

const tabs = Array.from(document.querySelectorAll("nav.tabs a"));
if (tabs.length) {
  const show = () => {
    const chosen = tabs.find((tab) => tab.hash === location.hash) || tabs[0];
    for (const tab of tabs) {
      document.querySelector(tab.hash).style.display = tab === chosen ? "" : "none";
      if (tab === chosen) tab.setAttribute("aria-current", "true"); else tab.removeAttribute("aria-current");
    }
  };
  window.addEventListener("hashchange", show);
  show();
}

for (const section of document.querySelectorAll("section.choice")) {
  const rows = Array.from(section.querySelectorAll("table.heat tbody tr")).slice();
  const values = (row) => Array.from(row.querySelectorAll("td[data-value]"), (cell) => parseFloat(cell.dataset.value));
  section.addEventListener("change", () => {
    const chosen = rows.filter((row) => row.querySelector("input").checked);
    const figures = chosen.map(values);
    const columns = figures.length ? figures[0].map((_, j) => j).filter((j) => figures.every((f) => !Number.isNaN(f[j]))) : [];
    for (const row of rows) for (const name of ["mean", "rank"]) row.querySelector(`td.${name}`).textContent = "—";
    const average = (list) => list.reduce((a, b) => a + b, 0) / list.length;
    chosen.forEach((row, i) => {
      if (!columns.length) return;
      row.querySelector("td.mean").textContent = average(columns.map((j) => figures[i][j])).toFixed(2);
      if (chosen.length < 2) return;
      const ranks = columns.map((j) => {
        const better = figures.filter((f) => f[j] > figures[i][j]).length;
        const equal = figures.filter((f) => f[j] === figures[i][j]).length;
        return better + (equal + 1) / 2; // equal values share the mean of their ranks
      });
      row.querySelector("td.rank").textContent = average(ranks).toFixed(2);
    });
    section.querySelector(".over").textContent = columns.length;
  });
}
