import { useId, useState } from "react";

/** A form that tells what went wrong; `submit` returns `{ error }`, as the calls of Better Auth do. */
export function Form({ action, className, fields, submit }) {
  const id = useId();
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const send = async (event) => {
    event.preventDefault();
    setBusy(true);
    const result = await submit(Object.fromEntries(new FormData(event.target)));
    setError(result.error ?? null);
    setBusy(false);
  };
  return (
    <form onSubmit={send}>
      {fields.map(({ label, ...field }) => (
        <div key={field.name}>
          <label htmlFor={id + field.name}>{label}</label>
          <input id={id + field.name} required {...field} />
        </div>
      ))}
      {error && (
        <p className="error" role="alert">
          {error.message || "The server did not answer"}
        </p>
      )}
      <button className={className} disabled={busy}>{action}</button>
    </form>
  );
}
