// Filter, search, sort and enlarge. Without this script the page shows the same, in its own order.
(() => {
  const rows = [...document.querySelectorAll("tr[data-outcome]")];
  const bar = document.getElementById("filter");
  const search = bar.querySelector("input[type=search]");
  const boxes = [...bar.querySelectorAll("input[type=checkbox]")];
  bar.hidden = false;
  const show = () => {
    const wanted = boxes.filter((box) => box.checked).map((box) => box.value);
    const text = search.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = !wanted.includes(row.dataset.outcome) || !row.textContent.toLowerCase().includes(text);
      count += !row.hidden;
      if (!row.hidden && text && row.closest("details")) row.closest("details").open = true;
    }
    bar.querySelector("output").textContent = `${count} of ${rows.length} rows`;
  };
  bar.addEventListener("input", show);
  bar.addEventListener("submit", (event) => event.preventDefault());
  for (const head of document.querySelectorAll("table.checks th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const body = head.closest("table").tBodies[0];
      const place = [...head.parentNode.children].indexOf(head);
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.children[place].dataset.key ?? row.children[place].textContent.trim();
      const order = (a, b) => { // what is no number comes last, in both directions
        const [x, y] = [key(a), key(b)];
        const [m, n] = [parseFloat(x), parseFloat(y)];
        if (Number.isNaN(m) !== Number.isNaN(n)) return Number.isNaN(m) ? 1 : -1;
        return (up ? 1 : -1) * (Number.isNaN(m) ? x.localeCompare(y) : m - n);
      };
      body.append(...[...body.rows].sort(order));
    });
  }
  for (const image of document.querySelectorAll("figure img")) {
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    const turn = () => image.classList.toggle("large");
    image.addEventListener("click", turn);
    image.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); turn(); }
      if (event.key === "Escape") image.classList.remove("large");
    });
  }
  show();
})();
