//! Project Wycheproof's tricky signatures against [`PublicKey::verifies`], for each key type of TUF.

use pleach_trust::PublicKey;
use pleach_trust::key::KeyValue;
use wycheproof::{TestResult, ecdsa, eddsa, rsa_pss_verify};

fn public(keytype: &str, scheme: &str, public: &str) -> PublicKey {
    let keyval = KeyValue { public: public.to_owned(), extra: Default::default() };
    PublicKey { keytype: keytype.into(), scheme: scheme.into(), keyval, extra: Default::default() }
}

/// Counts what was accepted and refused as it should be; `acceptable` cases bind nobody.
#[derive(Default)]
struct Count {
    accepted: usize,
    refused: usize,
}

impl Count {
    fn judge(&mut self, id: usize, expected: TestResult, verifies: bool) {
        match expected {
            TestResult::Valid => assert!(verifies, "case {id} is valid"),
            TestResult::Invalid => assert!(!verifies, "case {id} is invalid"),
            TestResult::Acceptable => return,
        }
        *(if verifies { &mut self.accepted } else { &mut self.refused }) += 1;
    }
}

#[test]
fn ed25519_accepts_and_refuses_as_wycheproof_says() {
    let mut count = Count::default();
    for group in eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap().test_groups {
        let key = public("ed25519", "ed25519", &hex::encode(&*group.key.pk));
        for test in group.tests {
            count.judge(test.tc_id, test.result, key.verifies(&test.msg, &test.sig));
        }
    }
    assert!(count.accepted > 50 && count.refused > 50, "{} and {}", count.accepted, count.refused);
}

#[test]
fn ecdsa_p256_accepts_and_refuses_as_wycheproof_says() {
    let mut count = Count::default();
    for group in ecdsa::TestSet::load(ecdsa::TestName::EcdsaSecp256r1Sha256).unwrap().test_groups {
        let key = public("ecdsa", "ecdsa-sha2-nistp256", &group.pem);
        for test in group.tests {
            count.judge(test.tc_id, test.result, key.verifies(&test.msg, &test.sig));
        }
    }
    assert!(count.accepted > 100 && count.refused > 100, "{} and {}", count.accepted, count.refused);
}

#[test]
fn rsa_pss_accepts_and_refuses_as_wycheproof_says() {
    use rsa_pss_verify::{TestName, TestSet};
    let mut count = Count::default();
    for name in [TestName::RsaPss2048Sha256Mgf1SaltLen32, TestName::RsaPss3072Sha256Mgf1SaltLen32, TestName::RsaPss4096Sha256Mgf1SaltLen32]
    {
        for group in TestSet::load(name).unwrap().test_groups {
            let key = public("rsa", "rsassa-pss-sha256", &group.pem);
            for test in group.tests {
                count.judge(test.tc_id, test.result, key.verifies(&test.msg, &test.sig));
            }
        }
    }
    assert!(count.accepted > 100 && count.refused > 100, "{} and {}", count.accepted, count.refused);
    // Other hashes and salts than the scheme's are other schemes.
    for name in [TestName::RsaPss2048Sha256Mgf1SaltLen0, TestName::RsaPss2048Sha384Mgf1SaltLen48, TestName::RsaPss2048Sha256Mgf1Sha1_20] {
        for group in TestSet::load(name).unwrap().test_groups {
            let key = public("rsa", "rsassa-pss-sha256", &group.pem);
            let mut valid = group.tests.iter().filter(|test| test.result == TestResult::Valid);
            assert!(valid.all(|test| !key.verifies(&test.msg, &test.sig)));
        }
    }
}
