//! The walk over all organizations: instances share it, none is skipped, and its rate grows with their number.

use chrono::Duration;
use sqlx::PgPool;
use tallyman::jobs::summaries::Walked;
use tallyman::postgres::{Actor, Postgres, deletions};

use crate::support::{Instance, World};

/// Organizations whose summaries say that they are full, though nothing was counted.
async fn create(postgres: &PgPool, count: i32) {
    sqlx::query(
        "with created as (
             insert into organizations (id, due_at)
             select 'org_' || number, 'infinity' from generate_series(1, $1) as number
             returning id
         )
         insert into standings (organization_id, fullness, period_end) select id, 1, 'infinity' from created",
    )
    .bind(count)
    .execute(postgres)
    .await
    .unwrap();
}

/// How many summaries are not repaired.
async fn stale(postgres: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from standings where fullness = 1")
        .fetch_one(postgres)
        .await
        .unwrap()
}

async fn visit(instance: &Instance) -> usize {
    instance
        .app
        .flusher
        .summaries
        .walk_once()
        .await
        .unwrap()
        .visited
}

#[tokio::test]
async fn instances_share_a_round_and_visit_each_organization_once() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    let postgres = world.postgres().await;
    create(&postgres, 250).await;
    assert_eq!(visit(&instances[0]).await, 100);
    assert_eq!(stale(&postgres).await, 150);
    // Nothing is due until some time has passed, for any of them.
    assert_eq!(visit(&instances[1]).await, 0);
    for (step, left) in [100, 50, 0].into_iter().enumerate() {
        world.clock.advance(Duration::seconds(1));
        assert_eq!(visit(&instances[step % 2]).await, 50);
        assert_eq!(stale(&postgres).await, left);
    }
    // The end, and the next round.
    world.clock.advance(Duration::seconds(1));
    assert_eq!(visit(&instances[0]).await, 0);
    world.clock.advance(Duration::days(1));
    assert_eq!(visit(&world.instance().await).await, 100);
}

#[tokio::test]
async fn the_rate_grows_with_the_number_of_organizations() {
    let world = World::new().await;
    let service = world.instance().await;
    let postgres = world.postgres().await;
    create(&postgres, 700).await;
    sqlx::query("update pg_class set reltuples = 1e8 where oid = 'organizations'::regclass")
        .execute(&postgres)
        .await
        .unwrap();
    let walk = async || service.app.flusher.summaries.walk_once().await.unwrap();
    let (total, mut visited) = (100_000_000, 0);
    for expected in [200, 138, 138] {
        let walked = Walked {
            visited: expected,
            total,
        };
        assert_eq!(walk().await, walked);
        visited += expected;
        world.clock.advance(Duration::milliseconds(100));
    }
    assert_eq!(
        stale(&postgres).await,
        700 - i64::try_from(visited).unwrap()
    );
}

#[tokio::test]
async fn organizations_that_could_not_be_visited_are_claimed_again() {
    let mut world = World::new().await;
    let service = world.instance().await;
    let postgres = world.postgres().await;
    create(&postgres, 150).await;
    assert_eq!(visit(&service).await, 100);
    world.kill_redis().await;
    service.until_observed("redis", false).await;
    for _ in 0..3 {
        world.clock.advance(Duration::seconds(1));
        let walked = service.app.flusher.summaries.walk_once().await;
        assert!(walked.is_err(), "{walked:?}");
    }
    world.start_redis().await;
    world.clock.advance(Duration::seconds(1));
    assert_eq!(visit(&service).await, 50);
}

#[tokio::test]
async fn an_instance_does_not_wait_for_another_that_is_claiming() {
    let world = World::new().await;
    let service = world.instance().await;
    let postgres = world.postgres().await;
    create(&postgres, 1).await;
    let mut other = postgres.begin().await.unwrap();
    sqlx::query("select from organization_walk for update")
        .execute(&mut *other)
        .await
        .unwrap();
    assert_eq!(visit(&service).await, 0);
    other.rollback().await.unwrap();
    assert_eq!(visit(&service).await, 1);
}

#[tokio::test]
async fn an_erasure_that_takes_long_keeps_its_lease() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 1).await;
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let actor = Actor {
        name: "tests".to_owned(),
        request_id: String::new(),
    };
    let (id, now) = ("org_1".parse().unwrap(), world.clock.now());
    let deleted = deletions::delete(&store, &id, &actor, now, now, now, |_| Ok::<(), ()>(()));
    deleted.await.unwrap().unwrap().commit().await.unwrap();
    let lease = async || {
        let now = world.clock.now();
        let until = now + Duration::seconds(60);
        deletions::lease(&store, now, until, 10).await.unwrap()
    };
    let leased = lease().await;
    assert_eq!(leased.len(), 1);
    for _ in 0..3 {
        world.clock.advance(Duration::seconds(20));
        let until = world.clock.now() + Duration::seconds(60);
        deletions::extend(&store, &leased, until).await.unwrap();
        world.clock.advance(Duration::seconds(39));
        assert!(lease().await.is_empty());
    }
    world.clock.advance(Duration::seconds(21));
    assert_eq!(lease().await.len(), 1);
}
