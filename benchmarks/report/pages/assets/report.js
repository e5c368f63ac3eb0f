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
  apply();
}

for (const section of document.querySelectorAll("section.heat")) {
  const select = section.querySelector("select.metric");
  const cells = section.querySelectorAll("td[data-all]");
  select.addEventListener("change", () => {
    const values = Array.from(cells, (cell) => parseFloat(cell.dataset.all.split(";")[select.value]));
    const found = values.filter((value) => !Number.isNaN(value));
    const low = Math.min(...found), high = Math.max(...found);
    cells.forEach((cell, i) => {
      const missing = Number.isNaN(values[i]);
      const level = missing ? "" : high > low ? Math.min(9, Math.floor((10 * (values[i] - low)) / (high - low))) : 9;
      cell.className = missing ? "" : `h${level}`;
      cell.dataset.value = missing ? "" : values[i];
      (cell.querySelector("a") || cell.firstChild || cell).textContent = missing ? "—" : values[i].toFixed(1);
    });
    section.querySelector(".shown").textContent = select.selectedOptions[0].textContent;
  });
}
