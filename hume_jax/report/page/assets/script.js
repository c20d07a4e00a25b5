"use strict";
(() => {
  const { charts, data } = JSON.parse(document.getElementById("page-data").textContent);
  const root = document.documentElement;
  const views = new Map();
  const byId = (id) => document.getElementById(id);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const say = (text) => { byId("said").textContent = text; };

  // ---- theme: what the system says, until a reader chooses

  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => { try { return localStorage.getItem("hume-theme"); } catch { return null; } };
  const setTheme = (theme) => {
    root.dataset.theme = theme;
    const other = theme === "dark" ? "Light" : "Dark";
    byId("theme").textContent = `${other} theme`;
  };
  setTheme(kept() || (system.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("hume-theme", theme); } catch { /* a page from a file may keep nothing */ }
    setTheme(theme);
    drawAll();
  });
  system.addEventListener("change", () => {
    if (!kept()) { setTheme(system.matches ? "dark" : "light"); drawAll(); }
  });

  // ---- charts

  const rows = new Map();
  const rowsOf = (name) => {
    if (!rows.has(name)) {
      const plain = (values) => (Array.isArray(values) ? values : values.numbers.map((i) => values.names[i]));
      const columns = Object.entries(data[name]).map(([key, values]) => [key, plain(values)]);
      const n = columns[0][1].length;
      rows.set(name, Array.from({ length: n }, (_, i) => {
        const row = {};
        for (const [key, values] of columns) row[key] = values[i];
        return row;
      }));
    }
    return rows.get(name);
  };
  const configOf = () => {
    const style = getComputedStyle(root);
    const get = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = { labelColor: get("soft"), titleColor: get("soft"), gridColor: get("grid"), domainColor: get("line"), tickColor: get("line"), labelFontSize: 11, titleFontSize: 12, titleFontWeight: 500 };
    const ramp = [get("ramp-low"), get("ramp-mid"), get("ramp-high")];
    return {
      background: get("card"),
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis,
      legend: { labelColor: get("soft"), titleColor: get("soft"), orient: "bottom", titleFontWeight: 500, titleOrient: "left", labelLimit: 80 },
      range: { category: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => get(`c${i}`)), ramp, heatmap: ramp },
      bar: { color: get("mark"), binSpacing: 0 },
      point: { color: get("mark") },
      line: { color: get("mark") },
      rect: { stroke: null },
      rule: { color: get("soft") },
      style: {
        reference: { color: get("soft"), strokeWidth: 1.5, opacity: 0.9 },
        task: { color: get("mark"), strokeWidth: 1.2, opacity: 0.5 },
        best: { color: get("best"), strokeWidth: 2.4 },
      },
      params: [{ name: "inkOver", value: get("over") }, { name: "inkUnder", value: get("under") }],
    };
  };
  const draw = async (chart) => {
    const target = byId(`chart-${chart.name}`);
    const { params: inks, ...config } = configOf();
    const spec = structuredClone(chart.spec);
    for (const param of spec.params || []) {
      const ink = inks.find((one) => one.name === param.name);
      if (ink) param.value = ink.value;
    }
    const label = target.getAttribute("aria-label");
    views.get(chart.name)?.finalize();
    const result = await window.vegaEmbed(target, { ...spec, datasets: { [chart.data]: rowsOf(chart.data) } }, {
      actions: false, config, renderer: chart.renderer, tooltip: { theme: "custom" },
      loader: { load: async () => { throw new Error("this page loads nothing"); } },
    });
    // The label says what is there; the marks one by one say nothing.
    target.setAttribute("aria-label", label);
    target.setAttribute("role", "img");
    all("svg, canvas", target).forEach((element) => element.setAttribute("aria-hidden", "true"));
    views.set(chart.name, result.view);
    if (chart.name.startsWith("map-")) choose();
  };
  const seen = (chart) => byId(`chart-${chart.name}`).offsetParent !== null;
  let drawing = Promise.resolve();
  const drawAll = () => {
    drawing = drawing.then(async () => {
      for (const chart of charts) if (seen(chart)) await draw(chart);
      root.dataset.drawn = root.dataset.theme;
    });
    return drawing;
  };

  // ---- the map's two choices

  const choice = byId("map-class-choice");
  const choose = () => {
    for (const [name, view] of views) {
      if (name.startsWith("map-")) view.signal("chosen", Number(choice.value)).run();
    }
  };
  if (choice) {
    choice.addEventListener("change", choose);
    byId("map-colour").addEventListener("change", (event) => {
      for (const name of ["map-class", "map-agreement"]) byId(`view-${name}`).hidden = name !== event.target.value;
      drawAll();
    });
  }

  // ---- tables

  const number = (text) => {
    const value = parseFloat(text.replace(/[,\s]/g, "").replace("−", "-"));
    return Number.isNaN(value) ? null : value;
  };
  const compare = (a, b) => {
    const x = number(a), y = number(b);
    if (x !== null && y !== null) return x - y;
    // Numbers before words, and what is missing last.
    if ((x === null) !== (y === null)) return x === null ? 1 : -1;
    return a.localeCompare(b);
  };
  for (const head of all("thead th")) {
    head.querySelector("button").addEventListener("click", () => {
      const table = head.closest("table"), body = table.tBodies[0];
      const at = head.cellIndex;
      // Numbers are read from the largest, words from the first.
      const first = head.classList.contains("n") && at > 0 ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const next = now === null ? first : now === "ascending" ? "descending" : "ascending";
      const sign = next === "ascending" ? 1 : -1;
      const text = (row) => row.cells[at].textContent.trim();
      const gone = (row) => text(row) === "–";
      const sorted = [...body.rows].sort((a, b) => gone(a) - gone(b) || sign * compare(text(a), text(b)));
      body.replaceChildren(...sorted);
      all("th[aria-sort]", table).forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", next);
      say(`Sorted by ${head.textContent.trim()}, ${next}`);
    });
  }

  // ---- saving

  const save = (name, address) => {
    const link = document.createElement("a");
    link.href = address;
    link.download = name;
    link.click();
    say(`Saved ${name}`);
  };
  const saveText = (name, text, type) => {
    const address = URL.createObjectURL(new Blob([text], { type }));
    save(name, address);
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };
  for (const button of all("[data-csv]")) {
    button.addEventListener("click", () => {
      const table = byId(button.dataset.csv).querySelector("table");
      const cell = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
      const lines = [...table.rows].map((row) => [...row.cells].map((one) => cell(one.textContent.trim())).join(","));
      saveText(`${button.dataset.csv}.csv`, `${lines.join("\n")}\n`, "text/csv");
    });
  }
  for (const button of all("[data-save]")) {
    button.addEventListener("click", async () => {
      const view = views.get(button.dataset.chart);
      if (!view) return;
      const name = `${button.dataset.chart}.${button.dataset.save}`;
      if (button.dataset.save === "svg") saveText(name, await view.toSVG(), "image/svg+xml");
      else save(name, await view.toImageURL("png", 2));
    });
  }

  // ---- classes: find, open, and open the one that a link leads to

  const classes = all("details.class");
  const find = byId("find");
  if (find) {
    const words = classes.map((one) => one.textContent.toLowerCase());
    find.addEventListener("input", () => {
      const asked = find.value.trim().toLowerCase();
      let count = 0;
      classes.forEach((one, i) => {
        const hit = /^\d+$/.test(asked) ? one.id === `class-${asked}` : words[i].includes(asked);
        one.hidden = !hit;
        count += hit;
      });
      byId("found").textContent = asked ? `${count} of ${classes.length} classes` : "";
    });
    byId("open-all").addEventListener("click", () => classes.forEach((one) => { one.open = !one.hidden; }));
    byId("close-all").addEventListener("click", () => classes.forEach((one) => { one.open = false; }));
  }
  const follow = () => {
    const target = location.hash.startsWith("#class-") && byId(location.hash.slice(1));
    if (target) { target.hidden = false; target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", follow);

  // ---- where one is

  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  if ("IntersectionObserver" in window) {
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(entry.target.id)?.setAttribute("aria-current", "true");
      }
    }, { rootMargin: "-30% 0px -65% 0px" });
    all("main > section").forEach((one) => watch.observe(one));
  }

  // On a phone all samples at once would be a page of many screens.
  if (innerWidth < 600) classes.slice(1).forEach((one) => { one.open = false; });
  drawAll().then(follow);
})();
