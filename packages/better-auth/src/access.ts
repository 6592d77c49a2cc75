// Who may read and change the usage of an organization.

import { APIError, getSessionFromCtx } from "better-auth/api";
import type { GenericEndpointContext } from "better-auth";
import { USAGE_TRACKING_ERROR_CODES as CODES } from "./errors.js";
import type { AdminAction, AuthSession, Settings } from "./settings.js";

/**
 * Returns the organization of a call that may be made: the one that is named, or the session's active one.
 *
 * Members read; platform administrators do everything. Owning an organization is not enough to change its limits. A call of
 * `auth.api` without headers is the server's own, and may do everything too.
 *
 * @throws {APIError} 401, or one of `NO_ORGANIZATION`, `NOT_A_MEMBER`, `NOT_ALLOWED` and `ORGANIZATION_NOT_FOUND`
 */
export async function authorize(ctx: GenericEndpointContext, settings: Settings, action: AdminAction, named?: string): Promise<string> {
  const isServerCall = !ctx.request && !ctx.headers;
  const session: AuthSession | null = isServerCall ? null : await getSessionFromCtx(ctx);
  if (!session && !isServerCall) throw new APIError("UNAUTHORIZED", { code: "UNAUTHORIZED", message: "Unauthorized" });
  const organizationId = named ?? session?.session.activeOrganizationId;
  if (!organizationId) throw new APIError("BAD_REQUEST", CODES.NO_ORGANIZATION);

  const isMember = session && action === "read" && (await exists(ctx, "member", { organizationId, userId: session.user.id }));
  if (isMember) return organizationId;
  const isAdmin = !session || isPlatformAdmin(ctx, session) || (await settings.isAdmin?.({ user: session.user, organizationId, action }));
  if (!isAdmin) throw new APIError("FORBIDDEN", action === "read" ? CODES.NOT_A_MEMBER : CODES.NOT_ALLOWED);
  if (!(await exists(ctx, "organization", { id: organizationId }))) throw new APIError("NOT_FOUND", CODES.ORGANIZATION_NOT_FOUND);
  return organizationId;
}

/** Whether the plugin `admin` calls the user an administrator. Without it, a field `role` may be the user's own to set. */
function isPlatformAdmin(ctx: GenericEndpointContext, { user }: AuthSession): boolean {
  const plugin = ctx.context.getPlugin("admin");
  if (!plugin) return false;
  const { adminRoles = ["admin"], adminUserIds = [] } = plugin.options ?? {};
  const roles = (user.role ?? "").split(",").map((role) => role.trim());
  const isAdminRole = (role: string) => (Array.isArray(adminRoles) ? adminRoles : adminRoles.split(",")).includes(role);
  return adminUserIds.includes(user.id) || roles.some(isAdminRole);
}

async function exists(ctx: GenericEndpointContext, model: "member" | "organization", fields: Record<string, string>): Promise<boolean> {
  if (!ctx.context.hasPlugin("organization")) return false;
  const where = Object.entries(fields).map(([field, value]) => ({ field, value }));
  return (await ctx.context.adapter.findOne({ model, where })) !== null;
}
