import { useState } from "preact/hooks";
import { Refusal, call, token } from "../api";

/** The token stays in this tab alone and is forgotten when it closes. */
export function Login({ done }: { done: () => void }) {
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event: Event) => {
    event.preventDefault();
    const text = String(new FormData(event.currentTarget as HTMLFormElement).get("token") ?? "").trim();
    setBusy(true);
    token.set(text);
    try {
      await call("fleet");
      done();
    } catch (refusal) {
      token.clear();
      setError(refusal instanceof Refusal ? refusal.message : "the controller does not answer");
    } finally {
      setBusy(false);
    }
  };
  return (
    <main class="login">
      <form onSubmit={submit}>
        <h1><img src="/icon.svg" alt="" width="40" height="40" />Pleach</h1>
        <label for="token">API token</label>
        <input id="token" name="token" type="password" autocomplete="off" required autofocus aria-describedby="hint" />
        <p id="hint">The first administrator's token is in <code>admin.token</code> in the controller's data folder.</p>
        {error && <p class="error" role="alert">{error}</p>}
        <button class="primary" disabled={busy}>Log in</button>
      </form>
    </main>
  );
}
