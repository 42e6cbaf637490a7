"use strict";
(() => {
  const TOOLTIP = { disableDefaultStyle: true };
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const hidden = new Set();
  const views = new Map();

  // The choices above a chart, as the place of the variant in the product of all choices.
  function variantOf(figure) {
    let place = 0;
    for (const group of figure.querySelectorAll("fieldset")) {
      const choices = [...group.querySelectorAll("input")];
      place = place * choices.length + choices.findIndex((choice) => choice.checked);
    }
    return place;
  }

  function rowsOf(columns) {
    const names = Object.keys(columns);
    const isSet = (name, place) => columns[name][place] !== null;
    return columns.arm.map((_, place) =>
      Object.fromEntries(names.filter((name) => isSet(name, place)).map((name) => [name, columns[name][place]])),
    );
  }

  async function draw(figure) {
    const { points: given, variants } = charts[figure.dataset.chart];
    const points = typeof given === "string" ? charts[given].points : given;
    const spec = structuredClone(variants[variantOf(figure)]);
    spec.data = { name: "rows", values: rowsOf(points) };
    spec.params = [...(spec.params ?? []), { name: "hidden", value: [...hidden] }];
    spec.transform = [{ filter: "indexof(hidden, datum.arm) < 0" }, ...(spec.transform ?? [])];
    const place = figure.querySelector(".drawing");
    const drawn = await vegaEmbed(place, spec, {
      actions: false,
      ast: true, // Vega's interpreter: the page's policy forbids eval
      defaultStyle: false,
      logLevel: 1, // errors; an axis without a point, when all arms are hidden, is no news
      renderer: "svg",
      tooltip: TOOLTIP,
    });
    views.get(figure)?.finalize();
    views.set(figure, drawn.view);
  }

  async function drawAll() {
    for (const figure of document.querySelectorAll("figure[data-chart]")) {
      try {
        await draw(figure);
      } catch (error) {
        console.error(error); // the still picture stays
      }
    }
    document.documentElement.dataset.drawn = "yes";
  }

  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    figure.querySelector(".controls")?.addEventListener("change", () => draw(figure));
  }

  const switches = [...document.querySelectorAll("button[data-arm]")];
  for (const button of switches) {
    button.addEventListener("click", () => {
      const { arm } = button.dataset;
      hidden.has(arm) ? hidden.delete(arm) : hidden.add(arm);
      for (const other of switches) other.setAttribute("aria-pressed", String(!hidden.has(other.dataset.arm)));
      for (const view of views.values()) view.signal("hidden", [...hidden]).runAsync();
    });
  }

  // Sorting: by the exact value of a cell; cells without one stay last.
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      const valueOf = (row) => row.cells[head.cellIndex].dataset.value ?? "";
      const compare = (one, two) => {
        const [a, b] = [valueOf(one), valueOf(two)];
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (Number.isNaN(Number(a)) ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      };
      body.append(...[...body.rows].sort(compare));
    });
  }

  for (const button of document.querySelectorAll("button[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    });
  }

  // Paper cannot be clicked: everything is open on it.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const part of closed) part.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const part of closed) part.open = false;
  });

  drawAll();
})();
