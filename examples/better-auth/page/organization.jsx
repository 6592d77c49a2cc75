import { useState } from "react";
import { ApiUsageCard, UsageHistoryChart, useUsage } from "@tallyman/better-auth/react";
import { authClient } from "./auth-client.js";
import { Form } from "./form.jsx";

export function Organization({ id, isAdmin }) {
  return (
    <main>
      <h1>Usage</h1>
      <div className="columns">
        <Work />
        <ApiUsageCard onUpgrade={isAdmin ? chooseLimit : undefined} />
      </div>
      {isAdmin && <Limits organizationId={id} />}
      <UsageHistoryChart timeRange="24h" showChartTypeControls />
    </main>
  );
}

function chooseLimit() {
  const input = document.querySelector("[name=apiLimit]");
  input.focus();
  input.select();
}

/** Makes calls that are counted, and explains a refusal to the user. */
function Work() {
  const [made, setMade] = useState(0);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const make = async (count) => {
    setBusy(true);
    for (let call = 0; call < count; call++) {
      const { error } = await authClient.$fetch("/make-report", { method: "POST", body: {} });
      setError(error);
      if (error) break;
      setMade((before) => before + 1);
    }
    setBusy(false);
  };
  return (
    <section className="panel" aria-labelledby="work">
      <h2 id="work">Reports</h2>
      <p>Each report is a call to the auth server, which the plugin counts.</p>
      <p className="buttons">
        <button type="button" disabled={busy} onClick={() => make(1)}>
          Make a report
        </button>
        <button type="button" className="second" disabled={busy} onClick={() => make(5)}>
          Make five
        </button>
      </p>
      <div role="status">
        {error ? <Refusal error={error} /> : made > 0 && <p>{made === 1 ? "One report was made." : `${made} reports were made.`}</p>}
      </div>
    </section>
  );
}

function Refusal({ error }) {
  if (error.code !== "API_LIMIT_EXCEEDED") return <p className="error">{error.message || "The server did not answer."}</p>;
  const until = error.resetDate && new Date(error.resetDate).toLocaleDateString(undefined, { dateStyle: "long" });
  return (
    <p className="error">
      <strong>All {error.limit} calls of this period are used.</strong> Calls are answered again {until && `on ${until}, or `}
      as soon as an administrator raises the limit.
    </p>
  );
}

/** What an administrator of the platform may change. */
function Limits({ organizationId }) {
  const { data } = useUsage();
  const change = async (action) => {
    try {
      await action();
      return {};
    } catch (error) {
      return { error: error.error ?? error };
    }
  };
  return (
    <section className="panel" aria-labelledby="limits">
      <h2 id="limits">Administration</h2>
      <div className="line">
        <Form
          key={data?.api.limit}
          action="Set limit"
          fields={[{ name: "apiLimit", label: "Calls in a period", type: "number", min: 0, defaultValue: Number.isFinite(data?.api.limit) ? data.api.limit : "" }]}
          submit={({ apiLimit }) => change(() => authClient.usageTracking.updateLimits({ organizationId, apiLimit: Number(apiLimit) }))}
        />
        <Form action="Begin a new period" className="second" fields={[]} submit={() => change(() => authClient.usageTracking.resetUsage({ organizationId }))} />
      </div>
    </section>
  );
}
