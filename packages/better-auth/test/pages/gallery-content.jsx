import { ApiUsageCard, FeatureAccessCard, UsageDashboard, UsageHistoryChart } from "@tallyman/better-auth/react";
import { atom } from "nanostores";

const DAY = 86_400_000;
/** So far ahead that "in 11 days" holds for the length of a test. */
const resetDate = new Date(Date.now() + 12 * DAY - 60_000);
const upgrade = () => {};

/** Days of two busy months, the same each time. */
export const history = (days, of = (day) => 900 + ((day * 7919) % 700) - (day % 7 > 4 ? 600 : 0)) =>
  Array.from({ length: days }, (_, day) => ({ date: new Date(Date.now() - day * DAY), value: of(day) }));

/** An auth client whose resources are in a state. */
export const clientOf = (state) => {
  const resource = { state: atom({ data: null, error: null, isPending: false, ...state }), refetch: async () => {} };
  return { $usageTracking: { usageAtom: atom({}), usageOf: () => resource, historyOf: () => resource } };
};
const failing = (status, code) => clientOf({ error: Object.assign(new Error("failed"), { status, error: { code } }) });
const usage = {
  api: { current: 4_812, limit: 5_000, resetDate },
  features: { advanced_analytics: true, seats: 25, region: "eu-central", prioritySupport: false },
  planId: "pro",
};

const LONG = "A feature with a very long name that somebody in sales thought of, including_an_unbreakable_identifier_of_sixty_characters_or_so";

export function Gallery() {
  return (
    <main>
      <h1>Components</h1>
      <Section title="Usage">
        <ApiUsageCard current={4_812} limit={50_000} resetDate={resetDate} />
        <ApiUsageCard current={41_300} limit={50_000} resetDate={resetDate} onUpgrade={upgrade} />
        <ApiUsageCard current={49_998} limit={50_000} resetDate={resetDate} onUpgrade={upgrade} />
        <ApiUsageCard current={1_000} limit={1_000} resetDate={new Date(Date.now() + 5 * 3_600_000)} onUpgrade={upgrade} />
        <ApiUsageCard current={5_620_000} limit={5_000_000} resetDate={resetDate} onUpgrade={upgrade} />
        <ApiUsageCard current={4_120} limit={Infinity} resetDate={resetDate} />
        <ApiUsageCard current={0} limit={0} />
        <ApiUsageCard current={1} limit={2_000_000} resetDate={new Date(Date.now() - 3 * DAY)} />
        <ApiUsageCard current={9_007_199_254_740_990} limit={9_007_199_254_740_991} resetDate={resetDate} onUpgrade={upgrade} />
        <ApiUsageCard authClient={clientOf({ isPending: true })} />
        <ApiUsageCard authClient={failing(503)} />
        <ApiUsageCard authClient={failing(400, "NO_ORGANIZATION")} />
        <ApiUsageCard authClient={clientOf({ data: usage, error: new Error("offline") })} />
      </Section>
      <Section title="Features">
        <FeatureAccessCard authClient={clientOf({ data: usage })} onUpgrade={upgrade} />
        <FeatureAccessCard
          features={{ sso: true, audit: false }}
          featureConfig={[
            { key: "sso", label: "Single sign-on", description: "With SAML or OpenID Connect" },
            { key: "audit", label: "Audit trail", description: "Who changed what, for a year" },
            { key: "long", label: LONG, description: LONG },
          ]}
          onUpgrade={upgrade}
        />
        <FeatureAccessCard feature="advanced_analytics" features={{ advanced_analytics: true }} />
        <FeatureAccessCard features={{}} />
      </Section>
      <Section title="History" wide>
        <UsageHistoryChart data={history(30)} timeRange="30d" showChartTypeControls />
        <UsageHistoryChart data={history(90)} timeRange="90d" chartType="area" />
        <UsageHistoryChart data={history(7)} timeRange="7d" chartType="line" height={140} />
        <UsageHistoryChart data={history(380, (day) => day * day)} timeRange="1y" />
        <UsageHistoryChart data={history(90, () => 123_456_789)} timeRange="all" showTimeRangeControls={false} />
        <UsageHistoryChart data={[]} />
        <UsageHistoryChart authClient={clientOf({ isPending: true })} showChartTypeControls />
        <UsageHistoryChart authClient={failing(503)} />
      </Section>
      <Section title="Dashboard" wide>
        <UsageDashboard apiUsage={usage.api} features={usage.features} history={history(30)} onUpgrade={upgrade} />
        <UsageDashboard apiUsage={usage.api} history={history(30)} layout="stack" />
        <UsageDashboard authClient={failing(401)} />
      </Section>
      <section dir="rtl">
        <h2>RTL</h2>
        <UsageDashboard
          locale="ar-EG"
          localization={{ API_CALLS: "استدعاءات الواجهة", LEFT: "بقي {count}" }}
          apiUsage={usage.api}
          features={usage.features}
          history={history(30)}
          onUpgrade={upgrade}
        />
      </section>
    </main>
  );
}

function Section({ title, wide = false, children }) {
  return (
    <section>
      <h2>{title}</h2>
      <div className={wide ? "wide" : "cards"}>{children}</div>
    </section>
  );
}
