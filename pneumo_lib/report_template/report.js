"use strict";
(() => {
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const wide = matchMedia("(min-width: 64rem)");
  const remembered = () => { try { return localStorage.getItem("report-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("report-theme", theme); } catch { /* a private window */ } };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

  // Before the first paint, so that a remembered theme does not flash.
  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();

  const themeSwitch = () => {
    const button = document.getElementById("theme-switch");
    const label = () => { button.textContent = isDark() ? button.dataset.light : button.dataset.dark; };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember(root.dataset.theme);
      label();
    });
    systemDark.addEventListener("change", label);
    label();
    button.hidden = false;
  };

  const codeSwitch = () => {
    const button = document.getElementById("code-switch");
    button.addEventListener("click", () => {
      const show = button.getAttribute("aria-pressed") !== "true";
      document.querySelectorAll("details.code").forEach((block) => { block.open = show; });
      button.setAttribute("aria-pressed", String(show));
    });
    button.hidden = false;
  };

  const contents = () => {
    const toc = document.querySelector(".toc details");
    const fit = () => { toc.open = wide.matches; };
    wide.addEventListener("change", fit);
    addEventListener("beforeprint", () => { toc.open = true; });
    addEventListener("afterprint", fit);
    toc.addEventListener("click", (event) => { if (!wide.matches && event.target.closest("a")) toc.open = false; });
    fit();
  };

  // Marks where the reader is: the last heading that has passed the upper fifth of the window, or the last one of all at the end of the page.
  const follow = () => {
    const links = [...document.querySelectorAll(".toc a")];
    const targets = links.map((link) => document.getElementById(link.hash.slice(1)));
    let due = false;
    const mark = () => {
      due = false;
      const ended = innerHeight + scrollY >= root.scrollHeight - 2;
      const limit = ended ? innerHeight : innerHeight / 5;
      const passed = targets.findLastIndex((target) => target.getBoundingClientRect().top < limit);
      links.forEach((link, i) => (i === passed ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
      if (wide.matches && passed >= 0) links[passed].scrollIntoView({ block: "nearest" });
    };
    addEventListener("scroll", () => { if (!due) { due = true; requestAnimationFrame(mark); } }, { passive: true });
    mark();
  };

  // Keyboard users must be able to scroll whatever is wider than the page, and only that.
  const reachable = () => {
    document.querySelectorAll(".scroll, pre").forEach((box) => {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    });
  };

  addEventListener("DOMContentLoaded", () => {
    [themeSwitch, codeSwitch, contents, follow, reachable].forEach((start) => start());
    addEventListener("resize", reachable);
    document.addEventListener("toggle", reachable, true);
  });
})();
