"use strict";
// Runs before the first paint, so that neither the theme nor what needs a script flashes.
(() => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  let chosen = ["light", "dark"].includes(remembered()) ? remembered() : null;
  const theme = () => chosen ?? (dark.matches ? "dark" : "light");

  const show = () => {
    root.dataset.bsTheme = theme();
    const button = document.getElementById("theme");
    if (button) button.textContent = theme() === "dark" ? button.dataset.light : button.dataset.dark;
  };
  const toggle = () => {
    chosen = theme() === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", chosen); } catch { /* a private window forgets it */ }
    show();
  };

  root.classList.add("js");
  show();
  dark.addEventListener("change", show);
  addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", toggle);
  });
})();
