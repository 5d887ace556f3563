// What stands around every page: where one is, where one can go, and whether the figures are live.

import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Link, useLocation } from "wouter-preact";
import { useConnected } from "../live";

const PAGES = [
  ["/", "Fleet"],
  ["/classes", "Classes"],
  ["/devices", "Devices"],
  ["/models", "Models"],
  ["/jobs", "Jobs"],
  ["/rollouts", "Rollouts"],
  ["/decisions", "Decisions"],
  ["/audit", "Audit"],
] as const;

export function Frame({ leave, children }: { leave: () => void; children: ComponentChildren }) {
  const [place] = useLocation();
  const up = useConnected();
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  useEffect(() => {
    const page = PAGES.find(([path]) => path !== "/" && place.startsWith(path));
    document.title = `${page?.[1] ?? "Fleet"} · Pleach`;
    // A new page begins at its top, also for a screen reader; not on the first one.
    if (!first.current) main.current?.focus();
    first.current = false;
  }, [place]);
  const here = (path: string) => (path === "/" ? place === "/" : place.startsWith(path));
  return (
    <>
      <a class="skip" href="#main">Skip to the content</a>
      <header class="top">
        <Link href="/" class="brand"><img src="/icon.svg" alt="" width="24" height="24" />Pleach</Link>
        <nav aria-label="Pages">
          {PAGES.map(([path, name]) => (
            <Link key={path} href={path} aria-current={here(path) ? "page" : undefined}>{name}</Link>
          ))}
        </nav>
        <span class={up ? "live" : "live lost"} role="status">{up ? "live" : "reconnecting…"}</span>
        <button onClick={leave}>Log out</button>
      </header>
      <main id="main" tabIndex={-1} ref={main}>{children}</main>
    </>
  );
}
