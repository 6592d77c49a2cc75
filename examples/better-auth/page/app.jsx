import "@tallyman/better-auth/styles.css";
import "./app.css";
import { useState } from "react";
import { createRoot } from "react-dom/client";
import { AuthUIProvider } from "@tallyman/better-auth/react";
import { authClient } from "./auth-client.js";
import { Form } from "./form.jsx";
import { Organization } from "./organization.jsx";

createRoot(document.getElementById("root")).render(
  <AuthUIProvider authClient={authClient}>
    <App />
  </AuthUIProvider>,
);

function App() {
  const { data, isPending } = authClient.useSession();
  if (isPending) return null;
  if (!data) return <SignIn />;
  return (
    <>
      <header className="top">
        <strong>Reports</strong>
        <span>
          {data.user.name}
          {data.user.role === "admin" && " · administrator"}
        </span>
        <button type="button" className="plain" onClick={() => authClient.signOut()}>
          Sign out
        </button>
      </header>
      {data.session.activeOrganizationId ? (
        <Organization id={data.session.activeOrganizationId} isAdmin={data.user.role === "admin"} />
      ) : (
        <NewOrganization />
      )}
    </>
  );
}

function SignIn() {
  const [isNew, setIsNew] = useState(true);
  return (
    <main className="gate">
      <h1>Reports</h1>
      <p>
        An example of usage limits. {isNew ? "The first user is its administrator." : "Its users are gone once it is restarted."}
      </p>
      <Form
        key={String(isNew)}
        action={isNew ? "Sign up" : "Sign in"}
        fields={[
          ...(isNew ? [{ name: "name", label: "Name", autoComplete: "name" }] : []),
          { name: "email", label: "Email", type: "email", autoComplete: "email" },
          { name: "password", label: "Password", type: "password", minLength: 8, autoComplete: isNew ? "new-password" : "current-password" },
        ]}
        submit={(values) => (isNew ? authClient.signUp.email(values) : authClient.signIn.email(values))}
      />
      <button type="button" className="plain" onClick={() => setIsNew(!isNew)}>
        {isNew ? "I have an account" : "I have no account yet"}
      </button>
    </main>
  );
}

function NewOrganization() {
  return (
    <main className="gate">
      <h1>Your organization</h1>
      <p>Its members share a limit of calls.</p>
      <Form
        action="Make organization"
        fields={[{ name: "name", label: "Name", autoComplete: "organization" }]}
        submit={({ name }) => authClient.organization.create({ name, slug: crypto.randomUUID() })}
      />
    </main>
  );
}
