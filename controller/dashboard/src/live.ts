// Keeps what a page shows fresh: it is read again whenever the controller says that something changed.

import { useEffect, useRef, useState } from "preact/hooks";
import { Refusal, call, get, token } from "./api";

/** Reads again at least so often, for what changes without an event (a device falls silent). */
const REFRESH_MS = 15_000;
/** Reads again at most so often, however much changes. */
const PAUSE_MS = 1_000;
const RECONNECT_MS = 2_000;

type Listener = () => void;
const listeners = new Set<Listener>();
const connection = new Set<(up: boolean) => void>();
let isUp = true;
let running = false;

function say(up: boolean) {
  isUp = up;
  connection.forEach((tell) => tell(up));
}

/** Follows the stream of server-sent events; `EventSource` cannot carry the token, so the stream is read by hand. */
async function follow() {
  while (token.get()) {
    try {
      const response = await call("events", { headers: { accept: "text/event-stream" } });
      const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
      say(true);
      listeners.forEach((tell) => tell());
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (text + value).split("\n\n");
        text = events.pop() ?? "";
        if (events.some((event) => event.startsWith("event: changed"))) listeners.forEach((tell) => tell());
      }
    } catch (error) {
      if (error instanceof Refusal && error.status === 401) break;
      say(false);
    }
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
  }
  running = false;
}

function listen(listener: Listener): () => void {
  listeners.add(listener);
  if (!running) {
    running = true;
    void follow();
  }
  return () => listeners.delete(listener);
}

/** Whether the stream of events is open. */
export function useConnected(): boolean {
  const [up, setUp] = useState(isUp);
  useEffect(() => {
    connection.add(setUp);
    return () => void connection.delete(setUp);
  }, []);
  return up;
}

export interface Live<T> {
  /** The newest answer; stays while a later one fails. */
  data: T | null;
  error: Refusal | Error | null;
}

/** The answer of a path, kept fresh. A path of null reads nothing. */
export function useLive<T>(path: string | null): Live<T> {
  const [live, setLive] = useState<Live<T>>({ data: null, error: null });
  const shown = useRef<string | null>(null);
  useEffect(() => {
    if (shown.current !== path) setLive({ data: null, error: null });
    shown.current = path;
    if (path === null) return;
    let over = false;
    let busy = false;
    let again = false;
    let timer = 0;
    const read = async () => {
      if (busy) {
        again = true;
        return;
      }
      busy = true;
      clearTimeout(timer);
      try {
        const data = await get<T>(path);
        if (!over) setLive({ data, error: null });
      } catch (error) {
        if (!over) setLive((before) => ({ data: before.data, error: error as Error }));
      }
      if (over) return;
      timer = setTimeout(() => {
        busy = false;
        if (again) {
          again = false;
          void read();
        } else {
          timer = setTimeout(read, REFRESH_MS);
        }
      }, PAUSE_MS);
    };
    void read();
    const stop = listen(read);
    return () => {
      over = true;
      clearTimeout(timer);
      stop();
    };
  }, [path]);
  return live;
}

/** The items of a list, kept fresh. */
export function useList<T>(path: string | null): { items: T[] | null; error: Error | null } {
  const { data, error } = useLive<{ items: T[] }>(path);
  return { items: data?.items ?? null, error };
}
