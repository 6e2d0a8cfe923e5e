// Draws the charts of a report, shows and hides runs, sorts tables. Data and specifications are in the element #data.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const boxes = [...document.querySelectorAll('input[name="run"]')];
  const drawn = new Map(); // figure -> what vega-embed gave
  const waiting = new Set();

  const shown = () => boxes.filter((box) => box.checked).map((box) => box.value);

  // A fresh copy for every chart: Vega writes the results of its transforms into the objects that it is given.
  const records = ({ fields, rows }) => rows.map((row) => Object.fromEntries(fields.map((field, i) => [field, row[i]])));

  const PANEL_EXTRA = 66; // axis and gap beside a panel, in pixels
  const columns = (picture, width) => Math.max(1, Math.floor(width / (picture.panel + PANEL_EXTRA)));

  const specification = (picture, width) => {
    const spec = structuredClone(page.specs[picture.spec]);
    spec.description = picture.title;
    spec.datasets = Object.fromEntries(Object.entries(picture.tables).map(([name, id]) => [name, records(page.tables[id])]));
    if (picture.panel) spec.columns = columns(picture, width);
    else spec.width = "container";
    for (const parameter of spec.params ?? []) {
      if (parameter.name === page.parameter && boxes.length) parameter.value = shown();
    }
    return spec;
  };

  const draw = async (figure) => {
    const picture = page.pictures[figure.id];
    const place = figure.querySelector(".chart");
    const width = place.clientWidth;
    drawn.get(figure)?.finalize();
    drawn.delete(figure);
    if (!width) return; // of a run that is not selected: the observer reports it when it is shown again
    const result = await vegaEmbed(place, specification(picture, width), {
      actions: false,
      logLevel: 1, // errors: its warnings are about choices that were made on purpose
      renderer: picture.renderer,
      config: page.themes[dark.matches ? "dark" : "light"],
      tooltip: { theme: dark.matches ? "dark" : "light" },
    });
    drawn.set(figure, { ...result, columns: columns(picture, width) });
    place.removeAttribute("data-height");
    figure.dataset.drawn = "";
  };

  // One after the other, so that the page stays responsive between two charts.
  let busy = false;
  const work = async () => {
    if (busy) return;
    busy = true;
    for (const figure of waiting) {
      waiting.delete(figure);
      try {
        await draw(figure);
      } catch (error) {
        figure.querySelector(".chart").textContent = `This chart could not be drawn: ${error.message}`;
        console.error(figure.id, error);
      }
      await new Promise((resolve) => setTimeout(resolve));
    }
    busy = false;
  };
  const figures = [...document.querySelectorAll("figure")];
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting && !drawn.has(target)) waiting.add(target);
      }
      work();
    },
    { rootMargin: "600px" },
  );
  figures.forEach((figure) => observer.observe(figure));

  const again = (changed) => {
    for (const figure of drawn.keys()) if (changed(figure)) waiting.add(figure);
    work();
  };
  dark.addEventListener("change", () => again(() => true));
  let settle;
  addEventListener("resize", () => {
    clearTimeout(settle);
    settle = setTimeout(() => again((figure) => {
      const picture = page.pictures[figure.id];
      const width = figure.querySelector(".chart").clientWidth;
      return picture.panel && width && columns(picture, width) !== drawn.get(figure).columns;
    }), 200);
  });

  // Which runs are shown.
  const KEY = `qvit report ${location.pathname}`;
  const select = () => {
    const names = shown();
    document.getElementById("count").textContent = `${names.length} of ${boxes.length}`;
    for (const element of document.querySelectorAll("[data-run]")) {
      element.classList.toggle("unselected", !names.includes(element.dataset.run));
    }
    for (const { view, spec } of drawn.values()) {
      if (spec.params?.some(({ name }) => name === page.parameter)) view.signal(page.parameter, names).runAsync();
    }
    sessionStorage.setItem(KEY, JSON.stringify(boxes.filter((box) => !box.checked).map((box) => box.value)));
  };
  const hidden = JSON.parse(sessionStorage.getItem(KEY) ?? "[]"); // a page that reloads itself keeps the choice
  boxes.forEach((box) => {
    box.checked = !hidden.includes(box.value);
    box.addEventListener("change", select);
  });
  document.querySelectorAll("[data-all]").forEach((button) => button.addEventListener("click", () => {
    boxes.forEach((box) => { box.checked = Boolean(button.dataset.all); });
    select();
  }));
  if (boxes.length) {
    select();
    if (matchMedia("(max-width: 700px)").matches) document.querySelector("details.legend").open = false;
  }

  // Tables: numbers by value, the largest first at the first press; what has no number comes last.
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.number ? Number(cell.dataset.number) : null;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const rows = [...body.rows];
      const numeric = rows.some((row) => value(row, column) !== null);
      const before = head.getAttribute("aria-sort");
      const direction = before === "none" ? (numeric ? "descending" : "ascending")
        : before === "ascending" ? "descending" : "ascending";
      const sign = direction === "ascending" ? 1 : -1;
      rows.sort((one, other) => {
        if (!numeric) {
          return sign * one.cells[column].textContent.localeCompare(other.cells[column].textContent, "en", { numeric: true });
        }
        const [a, b] = [value(one, column), value(other, column)];
        return a === null || b === null ? (a === null) - (b === null) : sign * (a - b);
      });
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? direction : "none"));
      body.append(...rows);
    }));
  }

  if (page.reload) {
    setInterval(() => {
      if (document.getElementById("reload").checked && !document.hidden) location.reload();
    }, 1000 * page.reload);
  }
})();
