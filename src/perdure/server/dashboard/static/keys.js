// Keys, and small comforts. Everything on a page works without this file, but for what comes live.
(() => {
  "use strict";
  const typing = (at) => at && (at.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName));
  const rows = () => [...document.querySelectorAll("[data-row]")].filter((row) => row.offsetParent !== null);
  const dialog = document.getElementById("keys");

  const move = (by) => {
    const all = rows();
    if (!all.length) return;
    const at = all.indexOf(document.activeElement.closest ? document.activeElement.closest("[data-row]") : null);
    const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1)];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  };
  const press = (found) => { if (found) found.click(); return Boolean(found); };
  const up = () => {
    const parts = location.pathname.split("/").filter(Boolean);
    const link = document.querySelector("[data-up]");
    if (link) link.click();
    else if (parts[0] === "runs") location.assign(parts.length > 2 ? `/runs/${parts[1]}` : "/");
    else if (parts.length > 1) location.assign(`/${parts[0]}`);
    else if (parts.length || location.search) location.assign("/");
  };

  let going = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || (dialog && dialog.open)) return;
    if (typing(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const key = event.key;
    if (going) {
      going = false;
      if (press(document.querySelector(`nav [data-key="${CSS.escape(key)}"]`))) event.preventDefault();
      return;
    }
    if (key === "g") going = true;
    else if (key === "j" || key === "ArrowDown" && document.activeElement.matches("[data-row]")) move(1);
    else if (key === "k" || key === "ArrowUp" && document.activeElement.matches("[data-row]")) move(-1);
    else if (key === "/") document.querySelector("[data-search]")?.focus();
    else if (key === "?" && dialog) dialog.showModal();
    else if (key === "u") up();
    else if (/^[1-9]$/.test(key)) { if (!press(document.querySelectorAll("[data-tab]")[key - 1])) return; }
    else if (!press(document.querySelector(`[data-verb="${CSS.escape(key)}"]`))) return;
    event.preventDefault();
  });

  const help = document.querySelector("[data-help]");
  if (help && dialog) {
    help.hidden = false;
    help.addEventListener("click", () => dialog.showModal());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  document.addEventListener("change", (event) => { if (event.target.matches("[data-submit]")) event.target.form.submit(); });

  // A log stays at its end while new lines come, unless one has scrolled up to read.
  const tail = document.querySelector("[data-tail]");
  if (tail) {
    let following = true;
    const end = () => { if (following) tail.scrollTop = tail.scrollHeight; };
    tail.addEventListener("scroll", () => { following = tail.scrollHeight - tail.scrollTop - tail.clientHeight < 40; });
    new MutationObserver(() => {
      while (tail.children.length > 2000) tail.firstElementChild.remove();
      end();
    }).observe(tail, { childList: true });
    end();
  }
})();
