"use strict";
(() => {
  const all = (what, root = document) => [...root.querySelectorAll(what)];
  const said = document.getElementById("said");

  // Sorting: a heading is a button; aria-sort says how the column is ordered.
  const worth = (row, column) => {
    const cell = row.cells[column];
    const key = cell.dataset.s;
    return key === undefined ? cell.textContent.trim() : key === "" ? null : Number(key);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  for (const button of all(".sortable thead button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const table = heading.closest("table");
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [worth(row, heading.cellIndex), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : up ? compare(a, b) : compare(b, a)));
      body.append(...rows.map(([, row]) => row));
      said.textContent = `sorted by ${button.textContent}, ${up ? "ascending" : "descending"}`;
    });
  }

  // A pressed entry of the legend picks its row out of every chart beside it.
  const style = document.head.appendChild(document.createElement("style"));
  let picked = null;
  for (const button of all(".legend button")) {
    button.addEventListener("click", () => {
      const place = button.closest("article, section");
      const own = button.getAttribute("aria-pressed") === "true";
      for (const other of all(".legend button")) other.setAttribute("aria-pressed", "false");
      if (picked) picked.removeAttribute("data-picked");
      picked = own ? null : place;
      style.textContent = "";
      if (own) return;
      button.setAttribute("aria-pressed", "true");
      place.setAttribute("data-picked", "");
      style.textContent =
        `[data-picked] .chart [style*="var(--s"]:not([style*="var(--s${Number(button.dataset.series)})"]) { opacity: .12; }` +
        `[data-picked] .legend .chart *, [data-picked] .worth .chart * { opacity: 1 !important; }`;
    });
  }

  // The theme is the system's until the button says otherwise.
  const theme = document.getElementById("theme");
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  theme.hidden = false;
  name();

  // Paper has nothing to unfold.
  let opened = [];
  addEventListener("beforeprint", () => { opened = all("details:not([open])"); for (const one of opened) one.open = true; });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
