"use strict";
(() => {
  const place = document.getElementById("live-runs");
  const sum = document.getElementById("live-sum");
  const note = document.getElementById("live-note");
  const shown = document.documentElement.dataset.page;
  const rows = new Map();

  const clock = (seconds) => {
    const all = Math.round(seconds), m = Math.floor(all / 60) % 60, h = Math.floor(all / 3600);
    return (h ? `${h}:${String(m).padStart(2, "0")}` : m) + ":" + String(all % 60).padStart(2, "0");
  };
  const add = (parent, name, text) => {
    const made = parent.appendChild(document.createElement(name));
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const words = (run) => {
    if (run.state === "failed") return `failed: ${run.message}`;
    if (run.state === "resumable") return `stopped at ${run.done} of ${run.total} steps; the same command goes on`;
    const parts = [`${run.stage} ${run.total ? `${run.done}/${run.total}` : ""}`.trim()];
    if (run.stage === "training" && run.loss !== null) parts.push(`loss ${run.loss.toPrecision(3)}`, `${run.images_per_s.toFixed(1)} images/s`);
    if (run.eta_s !== null) parts.push(`${clock(run.eta_s)} left`);
    if (run.silent_s > 120) parts.push(`nothing said for ${clock(run.silent_s)}`);
    return parts.join("  ·  ");
  };
  const draw = (run) => {
    let row = rows.get(run.id);
    if (!row) {
      const box = add(place, "div");
      box.className = "run";
      add(box, "code", run.id);
      const text = add(box, "span");
      text.className = "caption";
      row = { box, text, bar: add(box, "progress") };
      row.bar.setAttribute("aria-label", run.id);
      rows.set(run.id, row);
    }
    row.text.textContent = words(run);
    row.bar.max = run.total || 1;
    row.bar.value = run.total ? run.done : 0;
    row.bar.hidden = run.state === "failed";
  };
  const order = { running: 0, resumable: 1, failed: 2 };
  const update = (found) => {
    const runs = found.runs.sort((a, b) => order[a.state] - order[b.state] || a.id.localeCompare(b.id));
    for (const [id, row] of rows) if (!runs.some((run) => run.id === id)) { row.box.remove(); rows.delete(id); }
    runs.forEach((run) => { draw(run); place.append(rows.get(run.id).box); });
    const count = (state) => found.counts[state] || 0;
    const tables = found.tables.filter((one) => one.done < one.total).map((one) => `${one.name} ${one.done}/${one.total}`);
    sum.textContent = `${count("running")} running, ${count("done")} done, ${count("resumable")} stopped, ${count("failed")} failed` +
      (tables.length ? `. Tables: ${tables.join(", ")}` : "");
    if (found.page !== shown && !note.querySelector("a")) {
      note.textContent = "There are new results: ";
      const link = add(note, "a", "show them");
      link.href = location.pathname + location.hash;
      link.addEventListener("click", (event) => { event.preventDefault(); location.reload(); });
    }
  };
  const ask = async () => {
    if (!document.hidden) {
      try {
        update(await (await fetch("/progress.json")).json());
        if (note.dataset.lost) { note.textContent = ""; delete note.dataset.lost; }
      } catch {
        note.dataset.lost = "yes";
        note.textContent = "normbench serve does not answer; this is what it last said.";
      }
    }
    setTimeout(ask, 2000);
  };
  ask();
})();
