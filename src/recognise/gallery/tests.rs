use std::collections::BTreeMap;

use proptest::prelude::*;
use simsimd::SpatialSimilarity as _;

use super::*;
use crate::recognise::face::{ModelDigest, Part};

fn subject(id: usize) -> Subject {
    Subject { id: SubjectId::new(&format!("s{id}")).unwrap(), name: Name::new("Somebody").unwrap() }
}

fn template(dimension: usize, seed: u64) -> Template {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let raw = (0..dimension).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / f32::from(u16::MAX) / 128.0 - 1.0
    });
    Template::normalised(raw.collect()).unwrap()
}

/// The plain float scan, of references and means, that the search must agree with.
fn exact(references: &[(usize, Template)], probe: &Template) -> (usize, f32, Option<f32>) {
    let mut of_subject: HashMap<usize, Vec<&Template>> = HashMap::new();
    for (id, reference) in references {
        of_subject.entry(*id).or_default().push(reference);
    }
    let score = |templates: Vec<&Template>| {
        // Newest first, as the gallery adds them up.
        let mean = Template::mean(templates.iter().rev().copied()).unwrap();
        let all = templates.into_iter().chain(std::iter::once(&mean));
        all.map(|it| f32::dot(probe.as_slice(), it.as_slice()).unwrap() as f32)
            .fold(f32::NEG_INFINITY, f32::max)
    };
    let mut ranked: Vec<_> =
        of_subject.into_iter().map(|(id, templates)| (id, score(templates))).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    (ranked[0].0, ranked[0].1, ranked.get(1).map(|it| it.1))
}

#[test]
fn search_equals_exact_float_scan() {
    let references: Vec<_> = (0..3000).map(|n| (n % 700, template(128, n as u64 + 1))).collect();
    let mut gallery = Gallery::new(128);
    for (id, reference) in &references {
        gallery = gallery.with(subject(*id), std::slice::from_ref(reference));
    }
    assert_eq!((gallery.references(), gallery.subjects()), (3000, 700));
    for seed in 5000..5200 {
        let probe = template(128, seed);
        let found = gallery.search(&probe);
        let (id, score, second) = exact(&references, &probe);
        let best = found.best.unwrap();
        assert_eq!((best.subject.id.as_str(), best.score), (format!("s{id}").as_str(), score));
        assert_eq!(found.second_score, second);
    }
}

#[test]
fn second_best_is_another_subject() {
    let own = template(64, 1);
    let gallery = Gallery::new(64)
        .with(subject(1), &[own.clone(), own.clone()])
        .with(subject(2), &[template(64, 2)]);
    let found = gallery.search(&own);
    assert_eq!(found.best.unwrap().subject.id.as_str(), "s1");
    assert!(found.second_score.unwrap() < 0.9);
}

#[test]
fn mean_reference_is_searched_and_removed() {
    let one = template(64, 1);
    let other = template(64, 2);
    let mean = Template::mean([&one, &other]).unwrap();
    let apart = Gallery::new(64).with(subject(1), &[one]).with(subject(9), &[template(64, 9)]);
    let apart = apart.with(subject(1), &[other]);
    let found = apart.search(&mean).best.unwrap();
    assert!(found.score > 0.999 && found.subject.id.as_str() == "s1");
    assert_eq!((apart.references(), apart.subjects()), (3, 2));
    let gone = apart.without(&subject(1).id);
    assert_eq!(gone.search(&mean).best.unwrap().subject.id.as_str(), "s9");
    assert_eq!(gone.references(), 1);
    // Its slot serves the next subject, from whom nothing of the old remains.
    let reused = gone.with(subject(2), &[template(64, 3)]);
    assert!(reused.search(&mean).best.unwrap().score < 0.9);
}

#[test]
fn gallery_digest_ignores_order() {
    let add = |gallery: Gallery, id| gallery.with(subject(id), &[template(64, id as u64)]);
    let one = add(add(Gallery::new(64), 1), 2);
    let other = add(add(Gallery::new(64), 2), 1);
    assert_eq!(one.digest(), other.digest());
    assert_ne!(one.digest(), add(one.clone(), 3).digest());
    assert_eq!(one.digest(), add(one.clone(), 3).without(&subject(3).id).digest());
}

#[test]
fn gallery_snapshot_is_immutable() {
    let before = Gallery::new(64).with(subject(1), &[template(64, 1)]);
    let after = before.clone().with(subject(2), &[template(64, 2)]).without(&subject(1).id);
    assert_eq!((before.subjects(), before.references()), (1, 1));
    assert_eq!((after.subjects(), after.references()), (1, 1));
    assert_eq!(after.search(&template(64, 1)).best.unwrap().subject.id.as_str(), "s2");
    assert!(after.search(&template(32, 1)).best.is_none());
}

/// A change of a gallery; subjects and templates by number.
#[derive(Clone, Debug)]
enum Change {
    Add(usize, Vec<u64>),
    Replace(usize, Vec<u64>),
    Remove(usize),
    Rename(usize, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let templates = || proptest::collection::vec(1u64..500, 0..4);
    prop_oneof![
        3 => (0usize..40, templates()).prop_map(|(id, it)| Change::Add(id, it)),
        2 => (0usize..40, templates()).prop_map(|(id, it)| Change::Replace(id, it)),
        2 => (0usize..40).prop_map(Change::Remove),
        1 => (0usize..40, 0u8..9).prop_map(|(id, name)| Change::Rename(id, name)),
    ]
}

/// What a gallery comes to, kept as plainly as can be: name and references of each subject.
type Plain = BTreeMap<usize, (String, Vec<u64>)>;

fn apply(gallery: Gallery, plain: &mut Plain, change: &Change) -> Gallery {
    let made = |seeds: &[u64]| seeds.iter().map(|seed| template(16, *seed)).collect::<Vec<_>>();
    let somebody = || ("Somebody".to_owned(), Vec::new());
    match change {
        Change::Add(id, seeds) => {
            if !seeds.is_empty() || plain.contains_key(id) {
                let entry = plain.entry(*id).or_insert_with(somebody);
                entry.0 = "Somebody".into();
                entry.1.extend(seeds);
            }
            gallery.with(subject(*id), &made(seeds))
        }
        Change::Replace(id, seeds) => {
            plain.remove(id);
            if !seeds.is_empty() {
                plain.insert(*id, ("Somebody".into(), seeds.clone()));
            }
            gallery.replaced(subject(*id), &made(seeds))
        }
        Change::Remove(id) => {
            plain.remove(id);
            gallery.without(&subject(*id).id)
        }
        Change::Rename(id, name) => {
            let name = format!("Name {name}");
            if let Some(entry) = plain.get_mut(id) {
                entry.0.clone_from(&name);
            }
            gallery.renamed(&subject(*id).id, Name::new(&name).unwrap())
        }
    }
}

/// Best score with each subject, of its references and their mean.
fn plain_scores(plain: &Plain, probe: &Template) -> Vec<(usize, f32)> {
    let score = |seeds: &Vec<u64>| {
        let templates: Vec<_> = seeds.iter().map(|seed| template(16, *seed)).collect();
        let mean = Template::mean(&templates).unwrap();
        let all = templates.iter().chain(std::iter::once(&mean)).map(|it| it.compare(probe));
        all.fold(f32::NEG_INFINITY, f32::max)
    };
    let mut scores: Vec<_> = plain.iter().map(|(id, (_, seeds))| (*id, score(seeds))).collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    scores
}

fn check(gallery: &Gallery, plain: &Plain, probe: &Template) {
    let close = |a: f32, b: f32| (a - b).abs() < 1e-4;
    assert_eq!(gallery.subjects(), plain.len());
    assert_eq!(gallery.references(), plain.values().map(|it| it.1.len()).sum::<usize>());
    for (id, (name, seeds)) in plain {
        let id = subject(*id).id;
        assert_eq!(gallery.subject(&id).unwrap().name.as_str(), name);
        assert_eq!(gallery.references_of(&id), seeds.len());
    }
    let fresh = plain.iter().fold(Gallery::new(16), |fresh, (id, (_, seeds))| {
        fresh.with(subject(*id), &seeds.iter().map(|seed| template(16, *seed)).collect::<Vec<_>>())
    });
    assert_eq!(gallery.digest(), fresh.digest(), "the digest is that of a gallery made at once");
    let expected = plain_scores(plain, probe);
    let found = gallery.search(probe);
    assert_eq!(found.best.is_some(), !expected.is_empty());
    if let (Some(best), Some((_, score))) = (&found.best, expected.first()) {
        assert!(close(best.score, *score), "{} is not {score}", best.score);
    }
    assert_eq!(found.second_score.is_some(), expected.len() > 1);
    assert!(found.second_score.is_none_or(|score| close(score, expected[1].1)));
    // Those alike, without the best: the same as in the list, as far as the last digit decides
    // nothing.
    let except = expected.first().map_or(0, |it| it.0);
    let floor = 0.2;
    let alike = gallery.alike(probe, floor, 0.0, &subject(except).id);
    let sure =
        expected.iter().filter(|(id, score)| *id != except && *score >= floor + 1e-4).count();
    let possible =
        expected.iter().filter(|(id, score)| *id != except && *score >= floor - 1e-4).count();
    assert!((sure..=possible).contains(&alike.len()));
    for it in alike {
        let (_, score) = expected.iter().find(|(id, _)| subject(*id).id == it.subject.id).unwrap();
        assert!(close(it.score, *score));
    }
}

proptest! {
    #[test]
    fn gallery_equals_plain_model_after_changes(
        changes in proptest::collection::vec(change(), 1..250), seed in 1u64..1000, kept_at in 0usize..250
    ) {
        let mut gallery = Gallery::new(16);
        let mut plain = Plain::new();
        let mut kept = (gallery.clone(), plain.clone());
        for (at, change) in changes.iter().enumerate() {
            gallery = apply(gallery, &mut plain, change);
            if at == kept_at {
                kept = (gallery.clone(), plain.clone());
            }
        }
        let probe = template(16, seed);
        check(&gallery, &plain, &probe);
        // A snapshot taken on the way is what it was.
        check(&kept.0, &kept.1, &probe);
    }

    #[test]
    fn rounding_stays_within_its_bound(seed_a in 1u64..10_000, seed_b in 1u64..10_000, dimension in 1usize..600) {
        let a = template(dimension, seed_a);
        let b = template(dimension, seed_b);
        let gallery = Gallery::new(dimension).with(subject(1), std::slice::from_ref(&b));
        let probe = Rounded::of(a.as_slice());
        let scores = gallery.scan(&probe, |_, _| {});
        prop_assert!((scores[0] - a.compare(&b)).abs() <= gallery.references.bound(0, &probe));
    }
}

#[test]
fn own_score_compares_only_own_references() {
    let one = template(64, 1);
    let two = template(64, 2);
    let other = template(64, 3);
    let gallery = Gallery::new(64)
        .with(subject(1), &[one.clone(), two.clone()])
        .with(subject(2), std::slice::from_ref(&other));
    let own = |probe: &Template, id| gallery.own_score(probe, &subject(id).id);
    let best = other.compare(&one).max(other.compare(&two));
    assert!((own(&other, 1).unwrap() - best).abs() < 1e-6);
    assert!(own(&two, 1).unwrap() > 0.9999);
    assert_eq!((own(&one, 3), own(&template(32, 1), 1)), (None, None));
}

/// A complete template of a composite with 24 and 8 elements, or the first part alone.
fn composite(seed: u64, complete: bool) -> Template {
    let first = template(24, seed);
    if complete { first.with_second(&template(8, seed + 100_000), 0.7) } else { first }
}

fn composite_gallery() -> Gallery {
    let part = |of, dimension, weight| Part { digest: ModelDigest([of; 32]), dimension, weight };
    Gallery::of(&Embedder::composite(part(1, 24, 0.3), part(2, 8, 0.7)))
}

proptest! {
    #[test]
    fn complete_search_equals_plain_scores(
        people in proptest::collection::vec((1u64..500, any::<bool>()), 1..300), seed in 1u64..500,
        offset in -0.1f32..0.1
    ) {
        let mut gallery = composite_gallery();
        let mut scores = Vec::new();
        let probe = composite(seed, true);
        for (at, (reference, complete)) in people.iter().enumerate() {
            let reference = composite(*reference, *complete);
            let plain = reference.compare(&probe) + if *complete { 0.0 } else { offset };
            scores.push(plain);
            gallery = gallery.with(subject(at), &[reference]);
        }
        let complete = people.iter().filter(|(_, complete)| *complete).count();
        prop_assert_eq!(gallery.complete_references(), complete);
        scores.sort_by(|a, b| b.total_cmp(a));
        let first_max = gallery.search(&probe).best.unwrap().score;
        let found = gallery.search_complete(&probe, offset, first_max);
        if complete > 0 {
            prop_assert!((found.best.unwrap().score - scores[0]).abs() < 1e-4);
            let second = scores.get(1).zip(found.second_score);
            prop_assert!(second.is_none_or(|(plain, found)| (plain - found).abs() < 1e-4));
            prop_assert_eq!(found.second_score.is_some(), scores.len() > 1);
            let alike = gallery.alike(&probe, scores[0] - 0.1, offset, &subject(9999).id);
            let sure = scores.iter().filter(|it| **it >= scores[0] - 0.0999).count();
            prop_assert!(alike.len() >= sure);
        }
    }
}

#[test]
fn subject_with_any_complete_reference_is_complete() {
    let gallery = composite_gallery()
        .with(subject(1), &[composite(1, false)])
        .with(subject(2), &[composite(2, false), composite(3, true)]);
    assert_eq!(
        (gallery.is_complete(&subject(1).id), gallery.is_complete(&subject(2).id)),
        (false, true)
    );
    let best = |probe: &Template| gallery.search_complete(probe, 0.0, 1.0).best.unwrap();
    assert_eq!(
        (best(&composite(1, true)).subject.id.as_str(), best(&composite(1, true)).complete),
        ("s1", false)
    );
    assert_eq!(
        (best(&composite(3, true)).subject.id.as_str(), best(&composite(3, true)).complete),
        ("s2", true)
    );
    // A probe without the second part is searched by the first.
    assert!(!best(&composite(3, false)).complete);
    assert!(gallery.own_score(&composite(3, true), &subject(2).id).unwrap() > 0.9999);
    let gone = gallery.without(&subject(2).id);
    assert_eq!((gone.complete_references(), gone.references()), (0, 1));
    assert_eq!(
        gone.digest(),
        composite_gallery().with(subject(1), &[composite(1, false)]).digest()
    );
}
